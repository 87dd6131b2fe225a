"""Recognise checkpoint layouts that cannot be imported, and raise errors that name the layout and a remedy.

Projects related to CausVid and Wan save the same weights in other kinds of files (shards, training states) and under
other keys (with the prefix of a wrapper). The functions in this file read names only, never tensors, and the functions
for paths import no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from causvid.wan.formats.shard_names import shard_number

LAYOUT = "original_layout.json"  # file beside an imported model that stores the layout of the original file
JOIN = (
    "join the shards into one .safetensors file first: load each shard with safetensors.torch.load_file, and write all "
    "tensors with save_file"
)

# Maps the pattern of a file name in the folder to the name of the layout and the remedy.
_FOLDERS = {
    "*.distcp": (
        "a checkpoint of torch.distributed.checkpoint; convert it to one file with 'python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt'"
    ),
    "zero_to_fp32.py": "a DeepSpeed checkpoint; convert it to one file with the zero_to_fp32.py in this folder",
    "mp_rank_*": "a DeepSpeed checkpoint; convert it to one file with DeepSpeed's zero_to_fp32.py",
}
_ADAPTERS = ("adapter_config.json", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
# Maps the first bytes of a file to the kind of the file and the remedy.
_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch the file with 'git lfs pull'",
    b"outs:": "a .dvc file, which only points to the data; fetch the data with 'dvc pull' and pass their path",
    b"GGUF": "a quantised model in the GGUF format; pass the original weights as .safetensors or .pt",
    b"<!": "a web page, not a checkpoint; the download failed: fetch the file again",
    b"<html": "a web page, not a checkpoint; the download failed: fetch the file again",
    b"<?xml": "an XML file, not a checkpoint; the download failed: fetch the file again",
}
# Maps a part of a key to the wrapper that added this part.
_WRAPPERS = {
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_orig_mod.": "torch.compile",
}
_PREFIXES = {
    "module.": "DistributedDataParallel",
    "diffusion_model.": "ComfyUI",
    "model.diffusion_model.": "ComfyUI",
    "model.module.": "DistributedDataParallel",
}
# Maps a part of a key to the kind of another model than a text-to-video Wan transformer, and to the remedy.
_OTHER_MODELS = {
    "lora_": "a LoRA adapter, not a complete model; pass the model that the adapter was trained on",
    ".attn1.to_q.": (
        "a Wan transformer with the key names of diffusers, which needs no import; pass the folder that contains this "
        "file and its config.json"
    ),
    "img_emb.": "an image-to-video Wan model; only text-to-video models are supported",
    ".k_img.": "an image-to-video Wan model; only text-to-video models are supported",
    "vace_blocks.": "a VACE model; only text-to-video models are supported",
    ".scale_weight": "a model quantised to fp8 with scales; pass its weights in bfloat16 or float32",
}
# Keys that every Wan transformer with Wan's own key names has.
_ANCHORS = ("time_projection.1.weight", "head.modulation")


def require_file(path: Path) -> None:
    """Check that ``path`` is a single file that may contain a complete checkpoint.

    Raises:
        ValueError: ``path`` does not exist, or is a folder, a shard, an index of shards, or a pointer to another file.
    """
    if path.is_dir():
        layout = foreign_folder(path) or _folder_in_diffusers_layout(path)
        raise ValueError(f"{path} is {layout or 'a folder; pass the checkpoint file in it'}")
    if not path.is_file():
        target = f" is a link to {path.readlink()}, which" if path.is_symlink() else ""
        raise ValueError(f"{path}{target} does not exist")
    if (shard := shard_number(path.name)) and shard[1] > 1:
        raise ValueError(f"{path} is shard {shard[0]} of {shard[1]} of a sharded checkpoint; {JOIN}")
    with path.open("rb") as stream:
        start = stream.read(64)
    for magic, kind in _FILES.items():
        # A safetensors file starts with 8 bytes, which may look like text; the 9th byte is "{".
        if start.lstrip().lower().startswith(magic.lower()) and start[8:9] != b"{":
            raise ValueError(f"{path} is {kind}")
    if path.suffix == ".json":
        shards = _shards(path)
        raise ValueError(
            f"{path} is the index of a sharded checkpoint of {len(shards)} files; {JOIN}"
            if shards
            else f"{path} is a JSON file, not a checkpoint; pass the .pt or .safetensors file"
        )


def require_known_layout(path: Path) -> None:
    """Raise ValueError if ``path`` exists in a layout that cannot be imported. The message names the layout."""
    if path.is_dir() and (found := foreign_folder(path)):
        raise ValueError(f"{path} is {found}")
    if path.is_file():
        require_file(path)


def foreign_folder(folder: Path) -> str | None:
    """Return the layout of ``folder`` and a remedy if the layout cannot be imported; None otherwise."""
    for pattern, layout in _FOLDERS.items():
        if any(folder.glob(pattern)):
            return layout
    indices = sorted(folder.glob("*.index.json"))
    shards = [name for index in indices for name in _shards(index)]
    if _class_name(folder) == "WanModel":
        held = f"in {len(shards)} shards; {JOIN}" if shards else "in one file; pass that file"
        return f"a folder in Wan's own layout (config.json names WanModel), with the model {held}"
    if (folder / "config.json").is_file():
        return None
    if any((folder / name).is_file() for name in _ADAPTERS):
        return "a LoRA adapter, not a complete model; pass the model that the adapter was trained on"
    if shards:
        return (
            f"a folder of a sharded checkpoint of {len(shards)} files ({indices[0].name}) without a config.json; {JOIN}"
        )
    return None


def require_wan_keys(name: str, keys: Collection[str]) -> None:
    """Check that ``keys`` may be the key names of Wan's own text-to-video transformer.

    Args:
        name: Names of the file and of the entry in it, for the error message.
        keys: Names of the tensors, without the prefix ``model.``.

    Raises:
        ValueError: The keys have the prefix of a wrapper, or belong to another kind of model.
    """
    for mark, wrapper in _WRAPPERS.items():
        if wrapped := next((key for key in keys if mark in key), None):
            raise ValueError(
                f"{name} has keys with {mark!r}, for example {wrapped}: the model was wrapped in {wrapper} when it was "
                f"saved; remove {mark!r} from every key, or save the state dict of the wrapped module"
            )
    if any(key in _ANCHORS for key in keys):
        marks = {mark: kind for mark, kind in _OTHER_MODELS.items() if mark not in ("lora_", ".attn1.to_q.")}
    else:
        marks = _OTHER_MODELS
        _refuse_prefix(name, keys)
    for mark, kind in marks.items():
        if found := next((key for key in keys if mark in key), None):
            raise ValueError(f"{name} has the key {found}: the file contains {kind}")


def entries_remedy(entries: Mapping[Any, Any], wanted: str) -> str:
    """Return the end of an error message, which explains how to save one of ``entries`` as a file for the import.

    Args:
        entries: The top-level entries of a file.
        wanted: The entry that the import expects.
    """
    models = [str(key) for key, value in entries.items() if _is_state(value)]
    others = [str(key) for key in entries if str(key) not in models]
    if not models:
        return ""
    chosen = wanted if wanted in models else models[0]
    training = f"; {', '.join(others[:5])} belong to a training state" if others else ""
    choice = f" (of {', '.join(models)})" if len(models) > 1 else ""
    return (
        f"{training}; save the model in a separate file{choice}: "
        f"torch.save({{'{wanted}': torch.load(FILE)['{chosen}']}}, 'model.pt')"
    )


def _refuse_prefix(name: str, keys: Collection[str]) -> None:
    """Raise ValueError if ``keys`` are Wan's key names with an additional prefix."""
    for anchor in _ANCHORS:
        found = next((key for key in keys if key.endswith(f".{anchor}")), None)
        if found is not None:
            prefix = found.removesuffix(anchor)
            wrapper = f" ({_PREFIXES[prefix]})" if prefix in _PREFIXES else ""
            raise ValueError(
                f"{name} has keys that start with {prefix!r}{wrapper}, for example {found}; remove the "
                "prefix from every key: state = {key.removeprefix(PREFIX): value for key, value in state.items()}"
            )


def _folder_in_diffusers_layout(folder: Path) -> str | None:
    """Return the kind of a folder in diffusers' layout and a remedy; None for other folders."""
    if (folder / "model_index.json").is_file():
        return "a diffusers pipeline, which needs no import; use the folder directly"
    if (folder / "config.json").is_file():
        return (
            f"a folder in diffusers' layout (config.json names {_class_name(folder)}), which needs no import; use the "
            "folder directly"
        )
    return None


def _shards(index: Path) -> list[str]:
    """Return the names of the shards in the file ``index``; an empty list if the file is not an index."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _class_name(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())
