"""Find the weight files of a saved model that ``from_pretrained`` of diffusers or transformers reads.

A folder may hold weights of several saves: both libraries delete old shards when they save a model, but they keep an
old single file and an old index. All code that reads weights uses these functions, so that it reads the same files, and
files that do not belong together are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import utils as transformers_names

# Other files that may be weights, in the order in which an error lists them.
_OTHERS = ("*.safetensors", "*.bin", "*.index*.json", "*.pt", "*.pth", "*.ckpt", "*.gguf")
_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.\w+")
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)\.([^.-]+)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
)


def diffusers_files(folder: Path) -> list[Path]:
    """Return the weight files that diffusers' ``from_pretrained`` reads in ``folder``.

    These are the shards that the index names, else the single safetensors file, else the single pickled file.

    Args:
        folder: A folder that ``save_pretrained`` of a diffusers model wrote.

    Returns:
        The files, in the order in which diffusers reads them.

    Raises:
        ValueError: If there is no such file, or if the index and its shards are not of one save.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return shards_of(index, instead=folder / SAFETENSORS_WEIGHTS_NAME)
    for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME):
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(_no_weights(folder, SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def transformers_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers' ``from_pretrained`` reads in ``folder``.

    transformers prefers the single safetensors file over the index, diffusers prefers the index. A folder with both is
    refused, because one of the two is left over from an earlier save and nothing tells which one.

    Args:
        folder: A folder that ``save_pretrained`` of a transformers model wrote.

    Returns:
        The files.

    Raises:
        ValueError: If there is no such file, if there is both a single file and an index, or if the index and its
            shards are not of one save.
    """
    single, index = folder / transformers_names.SAFE_WEIGHTS_NAME, folder / transformers_names.SAFE_WEIGHTS_INDEX_NAME
    if single.is_file() and index.is_file():
        raise ValueError(
            f"{folder} holds both {single.name} and {index.name}; one of them is left over from an earlier save: "
            f"delete {single.name} to use the shards, or {index.name} to use the single file"
        )
    if index.is_file():
        return shards_of(index, instead=single)
    pickled = folder / transformers_names.WEIGHTS_NAME
    for file in (single, pickled):
        if file.is_file():
            return [file]
    pickled_index = folder / transformers_names.WEIGHTS_INDEX_NAME
    if pickled_index.is_file():
        return shards_of(pickled_index, instead=pickled)
    raise ValueError(_no_weights(folder, single.name, index.name))


def shards_of(index: Path, *, instead: Path) -> list[Path]:
    """Return the shards that ``index`` names, sorted by name.

    Args:
        index: An index file of shards (``….index.json``).
        instead: The single file that may hold a later save of the whole model.

    Returns:
        The shards, all of which exist. Each safetensors shard holds exactly the tensors that the index says.

    Raises:
        ValueError: If the index is damaged, or if a shard is missing, damaged or not of the same save.
    """
    wanted = _weight_map(index)
    files = [index.with_name(name) for name in sorted(wanted)]
    if missing := [file.name for file in files if not file.is_file()]:
        remedy = f"; to use {instead.name}, delete the index" if instead.is_file() else ""
        raise ValueError(
            f"{index} names {_some(missing)}, not found in {index.parent}: the index is left over from an earlier "
            f"save, or the download is incomplete{remedy}"
        )
    for file in files:
        if file.suffix != ".safetensors":
            continue
        held = set(tensor_names(file))
        if differing := sorted(held ^ wanted[file.name]):
            raise ValueError(
                f"{file} and {index.name} disagree about {_some(differing)}: they are not of the same save; save or "
                "download the model again, into an empty folder"
            )
    return files


def tensor_names(file: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file, from its header alone.

    Raises:
        ValueError: If the file is cut short or is no safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is cut short or no safetensors file ({error})") from error


def shard_number(name: str) -> tuple[int, int] | None:
    """Return (number, total) of a shard named like ``model-00001-of-00003.safetensors``; None for other names."""
    found = _SHARD.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def saved_class(folder: Path, kind: str, known: Iterable[type]) -> Any:
    """Return the class that ``folder``/config.json names.

    Args:
        folder: A folder that ``save_pretrained`` of a diffusers model wrote.
        kind: The user's word for such a model, for the error.
        known: The classes that are expected.

    Raises:
        ValueError: If there is no config.json, if it is damaged, or if it names another class.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no {kind} (no config.json)")
    try:
        name = dict(json.loads(path.read_text(encoding="utf-8"))).get("_class_name")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    classes = {cls.__name__: cls for cls in known}
    if name not in classes:
        remedy = ": 'python -m causvid.interop.original_checkpoint import' makes such a folder of Wan's own file"
        raise ValueError(
            f"{path} names the class {name}; expected one of {', '.join(sorted(classes))}, for a {kind}"
            f"{remedy if name == 'WanModel' else ''}"
        )
    return classes[name]


def load_saved(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load a diffusers model by its ``from_pretrained``, with every weight from the files.

    Args:
        cls: The model's class.
        folder: The folder that ``save_pretrained`` wrote.
        dtype: Data type of the weights, apart from those that diffusers keeps in float32.

    Returns:
        The model. Its config does not name ``folder``, so that saving it again gives the same bytes.

    Raises:
        ValueError: If files are missing or not of one save, or if their tensors are not exactly the model's.
    """
    diffusers_files(folder)
    model, found = cls.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    require_all_weights(folder, missing=found["missing_keys"], unknown=found["unexpected_keys"])
    model.register_to_config(_name_or_path=None)
    return model


def require_all_weights(folder: Path, *, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Raise ValueError, naming ``folder``, if weights are ``missing`` in its files or ``unknown`` to its config."""
    lacking, extra = sorted(missing), sorted(unknown)
    if any(".lora_" in key or ".base_layer." in key for key in extra):
        raise ValueError(
            f"{folder} was saved with a LoRA adapter on the model ({extra[0]}); save it again after fuse_lora() and "
            "unload_lora(), or after unload_lora() alone for the model without the adapter"
        )
    if lacking:
        raise ValueError(f"{folder} lacks the weights {_some(lacking)}, which its config.json asks for")
    if extra:
        raise ValueError(f"{folder} has the weights {_some(extra)}, for which its config.json has no place")


def require_weights(name: str, model: nn.Module) -> None:
    """Raise ValueError if the files of the component ``name`` lacked weights of ``model``.

    ``from_pretrained`` of a pipeline only warns, and leaves such weights on the meta device.
    """
    if hasattr(model, "hf_device_map"):  # accelerate keeps weights on the meta device until they are needed
        return
    if lacking := [key for key, weight in model.named_parameters() if weight.is_meta]:
        raise ValueError(
            f"the {name} has no weights {_some(lacking)}: its files are incomplete, or it was saved with a LoRA "
            "adapter on it; save it again, without the adapter or with the adapter fused"
        )


def _weight_map(index: Path) -> dict[str, set[str]]:
    """Return the names of the tensors in each file, by file name, as ``index`` lists them."""
    wanted: dict[str, set[str]] = {}
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}); expected the index of a sharded model") from error
    for key, name in entries:
        if not isinstance(name, str) or PurePath(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}; a shard must lie beside its index")
        wanted.setdefault(name, set()).add(key)
    return wanted


def _no_weights(folder: Path, single: str, index: str) -> str:
    """Explain why ``from_pretrained`` finds no weights in ``folder``, from the names of the files there."""
    expected = f"expected {single}, or shards with {index}"
    found = [path.name for pattern in _OTHERS for path in sorted(folder.glob(pattern))]
    if not found:
        return f"{folder} holds no weights; {expected}"
    listed = f"{folder} holds no weights that from_pretrained reads, only {_some(found)}"
    variant = next((match[1] for name in found if (match := _VARIANT.fullmatch(name))), None)
    if variant is not None:
        return f"{listed}: these are of the variant {variant!r}; save the model without a variant ({expected})"
    if any(name.endswith(".bin.index.json") for name in found):
        return f"{listed}: these are pickled shards; save the model again as safetensors ({expected})"
    if any(map(shard_number, found)):
        return f"{listed}: these are shards without their index ({expected})"
    if any(name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors") for name in found):
        return f"{listed}: this is a LoRA adapter, not a whole model ({expected})"
    return f"{listed}; {expected}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
