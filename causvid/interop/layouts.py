"""Recognise checkpoint layouts that cannot be imported, and refuse each by its name with a remedy.

Projects related to CausVid and Wan save the same weights in other files (shards, training states) and under other keys
(prefixes of wrappers). The functions here look at names only: no tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from causvid.wan.weight_files import shard_number

JOIN = (
    "join the shards into one .safetensors file first (safetensors.torch.load_file of each, save_file of all tensors)"
)

# Pattern of a file in the folder → name of the layout, and the remedy.
_FOLDERS = {
    "*.distcp": (
        "a checkpoint of torch.distributed.checkpoint; make one file of it with 'python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt'"
    ),
    "zero_to_fp32.py": "a DeepSpeed checkpoint; make one file of it with the zero_to_fp32.py that lies in it",
    "mp_rank_*": "a DeepSpeed checkpoint; make one file of it with DeepSpeed's zero_to_fp32.py",
}
_ADAPTERS = ("adapter_config.json", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
# First bytes of a file → kind of the file, and the remedy.
_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with 'git lfs pull'",
    b"outs:": "a .dvc file, which only points to the data; fetch the data with 'dvc pull' and give its path",
    b"GGUF": "a quantised model in the GGUF format; give the weights it was made from, as .safetensors or .pt",
    b"<!": "a web page, not a checkpoint; the download went wrong: fetch the file again",
    b"<html": "a web page, not a checkpoint; the download went wrong: fetch the file again",
    b"<?xml": "an XML file, not a checkpoint; the download went wrong: fetch the file again",
}
# Part of a key → the wrapper that added it.
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
# Part of a key → kind of the model, which is not the text-to-video Wan transformer.
_OTHER_MODELS = {
    "lora_": "a LoRA, not a whole model; give the model that it was trained on",
    ".attn1.to_q.": (
        "a Wan transformer under diffusers' key names, not Wan's own; there is nothing to import: give the folder that "
        "holds it, with its config.json"
    ),
    "img_emb.": "an image-to-video Wan; only text-to-video models are supported",
    ".k_img.": "an image-to-video Wan; only text-to-video models are supported",
    "vace_blocks.": "a VACE model; only text-to-video models are supported",
    ".scale_weight": "a model quantised to fp8 with scales; give its weights in bfloat16 or float32",
}
_ANCHORS = ("time_projection.1.weight", "head.modulation")  # every Wan transformer has them, under Wan's names only


def require_file(path: Path) -> None:
    """Check that ``path`` is one file, which may hold a whole checkpoint.

    Raises:
        ValueError: If there is nothing, a folder, a shard, the index of shards, or a file that points to another one.
    """
    if path.is_dir():
        found = foreign_folder(path) or _folder_in_diffusers_layout(path)
        raise ValueError(f"{path} is {found or 'a folder; give the checkpoint file in it'}")
    if not path.is_file():
        target = f" is a link to {path.readlink()}, which" if path.is_symlink() else ""
        raise ValueError(f"{path}{target} does not exist")
    if (shard := shard_number(path.name)) and shard[1] > 1:
        raise ValueError(f"{path} is shard {shard[0]} of {shard[1]} of a sharded checkpoint; {JOIN}")
    with path.open("rb") as stream:
        start = stream.read(64)
    for magic, said in _FILES.items():
        if start.lstrip().lower().startswith(magic.lower()) and start[8:9] != b"{":  # of a safetensors file's header
            raise ValueError(f"{path} is {said}")
    if path.suffix == ".json":
        shards = _shards(path)
        raise ValueError(
            f"{path} is the index of a sharded checkpoint of {len(shards)} files; {JOIN}"
            if shards
            else f"{path} is a JSON file, not a checkpoint; give the .pt or .safetensors file"
        )


def require_known_layout(path: Path) -> None:
    """Raise ValueError if ``path`` exists and has a layout that no function here reads. The error names the layout."""
    if path.is_dir() and (found := foreign_folder(path)):
        raise ValueError(f"{path} is {found}")
    if path.is_file():
        require_file(path)


def foreign_folder(folder: Path) -> str | None:
    """Return the name of the layout of ``folder`` and a remedy, if no function here reads it; else None."""
    for pattern, said in _FOLDERS.items():
        if any(folder.glob(pattern)):
            return said
    indices = sorted(folder.glob("*.index.json"))
    shards = [name for index in indices for name in _shards(index)]
    if _class_name(folder) == "WanModel":
        held = f"in {len(shards)} shards; {JOIN}" if shards else "in one file; give that file"
        return f"a folder of Wan's own layout (config.json names WanModel), with the model {held}"
    if (folder / "config.json").is_file():
        return None
    if any((folder / name).is_file() for name in _ADAPTERS):
        return "a LoRA adapter, not a whole model; give the model that it was trained on"
    if shards:
        return (
            f"a folder of a sharded checkpoint of {len(shards)} files ({indices[0].name}) without a config.json; {JOIN}"
        )
    return None


def require_wan_keys(name: str, keys: Collection[str]) -> None:
    """Check that ``keys`` (without ``model.``) are those of Wan's text-to-video transformer, in its own names.

    Args:
        name: The file and its entry, for the error.
        keys: Names of the tensors.

    Raises:
        ValueError: If they have the prefix of a wrapper, or are those of another model.
    """
    for mark, wrapper in _WRAPPERS.items():
        if wrapped := next((key for key in keys if mark in key), None):
            raise ValueError(
                f"{name} has keys with {mark!r}, as {wrapped}: they were saved from a model in {wrapper}; remove "
                f"{mark!r} from every key, or save the state dict of the module inside"
            )
    if any(key in _ANCHORS for key in keys):
        marks = {mark: said for mark, said in _OTHER_MODELS.items() if mark not in ("lora_", ".attn1.to_q.")}
    else:
        marks = _OTHER_MODELS
        _refuse_prefix(name, keys)
    for mark, said in marks.items():
        if found := next((key for key in keys if mark in key), None):
            raise ValueError(f"{name} has the key {found}: it is {said}")


def entries_remedy(entries: Mapping[Any, Any], wanted: str) -> str:
    """Explain how to save one state dict of a file with several ``entries`` as a file that can be imported."""
    models = [str(key) for key, value in entries.items() if _is_state(value)]
    others = [str(key) for key in entries if str(key) not in models]
    if not models:
        return ""
    chosen = wanted if wanted in models else models[0]
    training = f"; {', '.join(others[:5])} belong to a training state" if others else ""
    choice = f" (of {', '.join(models)})" if len(models) > 1 else ""
    return (
        f"{training}; save the one to use by itself{choice}: torch.save({{'{wanted}': torch.load(FILE)['{chosen}']}}, "
        "'model.pt')"
    )


def _refuse_prefix(name: str, keys: Collection[str]) -> None:
    """Raise ValueError if ``keys`` are the names of Wan's tensors with a prefix before each."""
    for anchor in _ANCHORS:
        found = next((key for key in keys if key.endswith(f".{anchor}")), None)
        if found is not None:
            prefix = found.removesuffix(anchor)
            wrapper = f" ({_PREFIXES[prefix]})" if prefix in _PREFIXES else ""
            raise ValueError(
                f"{name} has keys that start with {prefix!r}{wrapper}, as {found}; remove the prefix from every key: "
                "state = {key.removeprefix(PREFIX): value for key, value in state.items()}"
            )


def _folder_in_diffusers_layout(folder: Path) -> str | None:
    if (folder / "model_index.json").is_file():
        return "a diffusers pipeline, not a checkpoint of Wan's own; there is nothing to import: use it as it is"
    if (folder / "config.json").is_file():
        return (
            f"a folder of diffusers' layout (config.json names {_class_name(folder)}), not a checkpoint of Wan's own; "
            "there is nothing to import: use it as it is"
        )
    return None


def _shards(index: Path) -> list[str]:
    """Names of the shards in ``index``; none if it is no index."""
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
    return isinstance(value, Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())
