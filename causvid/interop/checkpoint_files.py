"""Read files of tensors that other programs wrote, and check the content, without running code in the files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from causvid.interop.layouts import require_file


def read_file(path: Path) -> dict[Any, Any]:
    """Read a safetensors file or a file that ``torch.save`` wrote. The format is recognised by the content of the file.

    Args:
        path: The file. If ``torch.save`` wrote the file in zip format, the tensors are memory-mapped.

    Returns:
        The mapping in the file.

    Raises:
        ValueError: The file does not exist, is truncated, does not contain a mapping, or has an unsupported layout,
            which the message names.
    """
    require_file(path)
    return read_tensors(path)


def read_tensors(path: Path) -> dict[Any, Any]:
    """Read one file as ``read_file`` does, but accept a shard. Raises ValueError if the file is not a checkpoint."""
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):  # torch.load also chooses the format by the suffix
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

    The suffix is not enough, because the name of a file in a cache of the hub or of DVC is a checksum without a suffix.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def check_tensors(name: str, state: Mapping[Any, Any]) -> None:
    """Raise ValueError unless all keys of ``state`` are strings and all values are dense floating-point tensors.

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
