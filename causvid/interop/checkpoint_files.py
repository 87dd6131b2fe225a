"""Read files of tensors that other programs wrote, check their content, and execute no code that they may contain."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from causvid.interop.layouts import require_file


def read_file(path: Path) -> dict[Any, Any]:
    """Read a safetensors file or a file of ``torch.save``. The content decides the format, not the suffix.

    Args:
        path: The file. Tensors of a ``torch.save`` file in zip format are memory-mapped.

    Returns:
        The mapping in the file.

    Raises:
        ValueError: The file does not exist, is truncated, does not contain a mapping, or has an unsupported layout,
            which the message names.
    """
    require_file(path)
    return read_tensors(path)


def read_tensors(path: Path) -> dict[Any, Any]:
    """Read one file like ``read_file``, but accept a shard. Raises ValueError if the file is not a valid checkpoint."""
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):  # torch.load decides by the suffix, too
        raise ValueError(f"{path} is a file of torch.save, not a safetensors file; rename it to {path.stem}.pt")
    try:
        if _is_safetensors(path):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # The parsers raise many types of exceptions for a file that is truncated or not a checkpoint.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is truncated, or is not a checkpoint that contains only tensors ({reason[:200]})"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} contains a {type(content).__name__}; expected a dict of state dicts or of tensors")
    return dict(content)


def _is_safetensors(path: Path) -> bool:
    """Return whether ``path`` has the suffix .safetensors, or starts with the length of a JSON header and the header.

    A file in a cache of the hub or of DVC is named after its checksum and has no suffix.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def check_tensors(name: str, state: Mapping[Any, Any]) -> None:
    """Raise ValueError with the key if ``state`` contains anything but dense floating-point tensors under string keys.

    Args:
        name: Name of the state dict, for the error message.
        state: The state dict.
    """
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name} has {key!r} of type {kind}; expected a floating-point tensor")
        if value.layout != torch.strided:
            raise ValueError(f"{name} has {key!r} in the layout {value.layout}; expected a dense tensor")
