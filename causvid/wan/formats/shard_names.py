"""Recognise the names of the files of a sharded model."""

from __future__ import annotations

import re

_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.\w+")


def shard_number(name: str) -> tuple[int, int] | None:
    """Return (number, total) of a shard named like ``model-00001-of-00003.safetensors``; None for other names."""
    match = _SHARD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None
