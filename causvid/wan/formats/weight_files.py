"""Find the weight files of a saved model that ``from_pretrained`` of diffusers or transformers reads.

A folder may contain weights of several saves: when the two libraries save a model, they delete old shards, but keep an
old single file and an old index. All code that reads weights uses these functions, and thus reads the same files as the
libraries. If the files are from different saves, the functions raise an error that names the files.
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

from causvid.wan.formats.shard_names import shard_number

# Files that may be weights in another format, in the order in which an error message lists them.
_OTHERS = ("*.safetensors", "*.bin", "*.index*.json", "*.pt", "*.pth", "*.ckpt", "*.gguf")
CONFIG = "config.json"
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)\.([^.-]+)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
)


def diffusers_files(folder: Path) -> list[Path]:
    """Return the weight files that diffusers' ``from_pretrained`` reads in ``folder``.

    The order of preference is: shards in the index, single safetensors file, single pickled file.

    Args:
        folder: A folder that ``save_pretrained`` of a diffusers model wrote.

    Returns:
        The files, in the order in which diffusers reads them.

    Raises:
        ValueError: If there is no weight file, or if the index and the shards are from different saves.
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

    transformers prefers the single safetensors file to the index, diffusers prefers the index. A folder with both files
    is refused: one of the files is from an earlier save, and this function cannot know which file is newer.

    Args:
        folder: A folder that ``save_pretrained`` of a transformers model wrote.

    Returns:
        The files.

    Raises:
        ValueError: If there is no weight file, if there are a single file and an index, or if the index and the shards
            are from different saves.
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
        Paths of existing shards. Each safetensors shard contains exactly the tensors that the index lists for it.

    Raises:
        ValueError: If the index is damaged, or if a shard is missing, damaged or from another save.
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
                f"{file} and {index.name} disagree about {_some(differing)}: they belong to different saves; save or "
                "download the model again into an empty folder"
            )
    return files


def tensor_names(file: Path) -> list[str]:
    """Read the names of the tensors in a safetensors file from the header of the file.

    Raises:
        ValueError: If the file is truncated or is not a safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is cut short or is not a safetensors file ({error})") from error


def saved_config(folder: Path, kind: str) -> dict[str, Any]:
    """Read the config.json of a model that diffusers saved.

    Args:
        folder: A folder that ``save_pretrained`` of a diffusers model wrote.
        kind: Kind of model for error messages, for example "VAE".

    Raises:
        ValueError: If there is no config.json, or if it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {kind} (no {CONFIG})")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def saved_class(folder: Path, kind: str, known: Iterable[type]) -> Any:
    """Return the model class whose name is in ``folder``/config.json.

    Args:
        folder: A folder that ``save_pretrained`` of a diffusers model wrote.
        kind: Kind of model for error messages, for example "VAE".
        known: Accepted classes.

    Raises:
        ValueError: If there is no config.json, if it is damaged, or if it names another class.
    """
    name, classes = saved_config(folder, kind).get("_class_name"), {cls.__name__: cls for cls in known}
    if name not in classes:
        remedy = ": 'python -m causvid.interop.original_checkpoint import' creates such a folder from a file of Wan"
        raise ValueError(
            f"{folder / CONFIG} names the class {name}; expected one of {', '.join(sorted(classes))}, for a {kind}"
            f"{remedy if name == 'WanModel' else ''}"
        )
    return classes[name]


def load_saved(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load a diffusers model with ``from_pretrained``, and check that the files contain every weight.

    Args:
        cls: Class of the model.
        folder: A folder that ``save_pretrained`` wrote.
        dtype: Data type of the weights, except those that diffusers keeps in float32.

    Returns:
        The model. Its config does not contain ``folder``, so that a saved copy has the same bytes.

    Raises:
        ValueError: If files are missing or from different saves, or if the model has other tensors than the files.
    """
    diffusers_files(folder)
    model, report = cls.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    require_all_weights(folder, missing=report["missing_keys"], unknown=report["unexpected_keys"])
    model.register_to_config(_name_or_path=None)
    return model


def require_all_weights(folder: Path, *, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Raise ValueError if there are names in ``missing`` (absent from ``folder``) or ``unknown`` (not in the model)."""
    lacking, extra = sorted(missing), sorted(unknown)
    if any(".lora_" in key or ".base_layer." in key for key in extra):
        raise ValueError(
            f"{folder} was saved with a LoRA adapter on the model ({extra[0]}); save it again after fuse_lora() and "
            "unload_lora(), or after unload_lora() alone for the model without the adapter"
        )
    if lacking:
        raise ValueError(f"{folder} lacks the weights {_some(lacking)}, which a model with its config.json needs")
    if extra:
        raise ValueError(f"{folder} has the weights {_some(extra)}, which a model with its config.json does not have")


def require_weights(name: str, model: nn.Module) -> None:
    """Raise ValueError if ``model``, the component ``name`` of a pipeline, was loaded without some of its weights.

    ``from_pretrained`` of a pipeline only warns about missing weights, and puts them on the meta device.
    """
    if hasattr(model, "hf_device_map"):  # accelerate keeps weights on the meta device until they are needed
        return
    if lacking := [key for key, weight in model.named_parameters() if weight.is_meta]:
        raise ValueError(
            f"the {name} has no weights {_some(lacking)}: its files are incomplete, or it was saved with a LoRA "
            "adapter on it; save it again, without the adapter or with the adapter fused"
        )


def _weight_map(index: Path) -> dict[str, set[str]]:
    """Return the names of the tensors that ``index`` lists for each file."""
    wanted: dict[str, set[str]] = {}
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}); expected the index of a sharded model") from error
    for key, name in entries:
        if not isinstance(name, str) or PurePath(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}; a shard must be in the folder of its index")
        wanted.setdefault(name, set()).add(key)
    return wanted


def _no_weights(folder: Path, single: str, index: str) -> str:
    """Explain why ``from_pretrained`` reads no file in ``folder``, from the names of the files."""
    expected = f"expected {single}, or shards with {index}"
    others = [path.name for pattern in _OTHERS for path in sorted(folder.glob(pattern))]
    if not others:
        return f"{folder} holds no weights; {expected}"
    listed = f"{folder} holds no weights that from_pretrained reads, only {_some(others)}"
    variant = next((match[1] for name in others if (match := _VARIANT.fullmatch(name))), None)
    if variant is not None:
        return f"{listed}: these are of the variant {variant!r}; save the model without a variant ({expected})"
    if any(name.endswith(".bin.index.json") for name in others):
        return f"{listed}: these are pickled shards; save the model again as safetensors ({expected})"
    if any(map(shard_number, others)):
        return f"{listed}: these are shards without their index ({expected})"
    if any(name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors") for name in others):
        return f"{listed}: this is a LoRA adapter, not a whole model ({expected})"
    return f"{listed}; {expected}"


def _some(names: list[str]) -> str:
    """Join the first three names, and add the number of other names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
