"""One safetensors file per clip or pair: what workers write, in any order, and packing reads back by the index.

The index, manifest.jsonl, is written last: a folder with one is whole.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from causvid.data.videos import manifest

REJECTED = "rejected.jsonl"


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
    # Two may write it at once: one that was given up for dead, and the one that took its place.
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
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


def finish(folder: Path, rows: Sequence[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]]) -> None:
    """Write the index of a folder: ``rows`` {id, caption} have a shard, ``rejected`` {id, code, reason} have none.

    What killed workers left is removed. Raises ValueError when a shard is not there.
    """
    for left in (*folder.glob("*.tmp"), *folder.glob(".tmp*")):  # ours, and safetensors' own while it writes
        left.unlink()
    if missing := [row["id"] for row in rows if not shard_path(folder, row["id"]).is_file()]:
        raise ValueError(f"{folder} has no shard {missing[0]} and {len(missing) - 1} others; run the stage again")
    manifest.write_rows(folder / REJECTED, sorted(rejected, key=lambda row: str(row["id"])))
    manifest.write_rows(folder / manifest.NAME, sorted(rows, key=lambda row: str(row["id"])))


def indexed(folder: Path) -> list[Path]:
    """The shards that the index lists, in its order. Raises ValueError when the folder holds others or has no index."""
    names = [row["id"] for row in manifest.read_manifest(folder)]
    found = {path.stem for path in folder.glob("*.safetensors")}
    if different := sorted(found.symmetric_difference(names)):
        raise ValueError(
            f"{folder}: the index lists {len(names)} shards, {len(found)} are there, {different[0]} is one of the "
            "differences; run the stage that makes them again"
        )
    return [shard_path(folder, name) for name in names]
