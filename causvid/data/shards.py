"""One safetensors file per clip or pair: what workers write, in any order, and packing reads back sorted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Shard(NamedTuple):
    """latents: float16 [C, F, H, W] or [T, C, F, H, W]; notes: strings such as the caption and the timesteps."""

    latents: torch.Tensor
    notes: Mapping[str, str]


def shard_path(folder: Path, name: str) -> Path:
    """Where the shard ``name`` lies."""
    return folder / f"{name}.safetensors"


def write_shard(folder: Path, name: str, shard: Shard) -> None:
    """Write one shard so that it is there whole or not at all. Equal content gives equal bytes.

    The notes are one entry of the file's metadata: safetensors writes several in a random order.
    """
    path = shard_path(folder, name)
    temporary = path.with_suffix(".tmp")
    latents = shard.latents.to(torch.float16).contiguous().cpu()
    save_file({"latents": latents}, temporary, metadata={"notes": json.dumps(dict(shard.notes), sort_keys=True)})
    os.replace(temporary, path)


def read_shard(path: Path) -> Shard:
    """The shard at ``path``. Raises ValueError when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return Shard(file.get_tensor("latents"), json.loads((file.metadata() or {})["notes"]))
    except Exception as error:  # safetensors raises its own untyped errors for cut or foreign files
        raise ValueError(f"{path} is not a shard ({error}); delete it and run its stage again") from error
