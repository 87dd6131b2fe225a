"""Files of tensors from elsewhere: read without running the code that they may carry, and checked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from causvid.interop.layouts import require_file


def read_file(path: Path) -> dict[Any, Any]:
    """Read a safetensors file or a file of ``torch.save``, whichever its content is; run no code that it may carry.

    Args:
        path: The file. Tensors of a ``torch.save`` file are mapped into memory, not read.

    Returns:
        The mapping that the file holds.

    Raises:
        ValueError: If there is no such file, or if it is cut short, no mapping, or of another layout, which is named.
    """
    require_file(path)
    return read_tensors(path)


def read_tensors(path: Path) -> dict[Any, Any]:
    """Read one file as ``read_file`` does, also if it is a shard. Raises ValueError if it is cut or no mapping."""
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):  # torch.load goes by the suffix, too
        raise ValueError(f"{path} is a file of torch.save, not a safetensors file; rename it to {path.stem}.pt")
    try:
        if _is_safetensors(path):
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # Foreign parsers with many ways to fail on a file that is cut or no checkpoint at all.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is cut short or no checkpoint of tensors alone ({reason[:200]})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, not state dicts by name")
    return dict(found)


def _is_safetensors(path: Path) -> bool:
    """Whether ``path`` starts as a safetensors file does, with the length of a JSON header, or has that suffix.

    A file in a cache of the hub or of DVC has a checksum for a name.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def check_tensors(name: str, state: Mapping[Any, Any]) -> None:
    """Raises ValueError, naming the key, for anything in ``state`` but dense floating-point tensors by name."""
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name} has {key!r} of {kind}; expected a floating-point tensor")
        if value.layout != torch.strided:
            raise ValueError(f"{name} has {key!r} in the layout {value.layout}; expected a dense tensor")
