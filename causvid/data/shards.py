"""Read and write shards, which are safetensors files with one clip or ODE pair, and the index of a folder of shards.

Workers write shards in any order, and ``data.pack`` reads the shards in the order of the index. The index,
manifest.jsonl, is written last: a folder with an index is complete.
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
    """Content of a shard.

    Attributes:
        latents: [C, F, H, W] for a clip, or [T, C, F, H, W] for the T states of an ODE pair. Latents that are read are
            float16.
        notes: Strings, such as the caption and the timesteps.
    """

    latents: torch.Tensor
    notes: Mapping[str, str]


def shard_path(folder: Path, name: str) -> Path:
    """Return the path of the shard ``name``."""
    return folder / f"{name}.safetensors"


def write_shard(folder: Path, name: str, shard: Shard) -> None:
    """Write a shard by rename, so that the file is complete or absent. Equal content gives equal bytes.

    All notes are stored in one entry of the file's metadata, because safetensors writes several entries in a random
    order.
    """
    path = shard_path(folder, name)
    # The name is unique, because a worker that is only believed dead may write the same shard as its replacement.
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    latents = shard.latents.to(torch.float16).contiguous().cpu()
    save_file({"latents": latents}, temporary, metadata={"notes": json.dumps(dict(shard.notes), sort_keys=True)})
    os.replace(temporary, path)


def read_shard(path: Path) -> Shard:
    """Read the shard at ``path``. Raises ValueError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return Shard(file.get_tensor("latents"), json.loads((file.metadata() or {})["notes"]))
    except Exception as error:  # safetensors has no common error type for truncated files and other formats
        raise ValueError(
            f"{path} is not a valid shard ({error}); delete it and run the stage that writes it again"
        ) from error


def finish(folder: Path, rows: Sequence[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]]) -> None:
    """Write the index of a folder and its rejected.jsonl, and delete temporary files of killed workers.

    Args:
        folder: Folder of the shards.
        rows: {id, caption} of every item that has a shard.
        rejected: {id, code, reason} of every item that has no shard.

    Raises:
        ValueError: A shard of ``rows`` is missing.
    """
    for left in (*folder.glob("*.tmp"), *folder.glob(".tmp*")):  # unfinished files of write_shard, and of safetensors
        left.unlink()
    if missing := [row["id"] for row in rows if not shard_path(folder, row["id"]).is_file()]:
        raise ValueError(
            f"{folder} has no shard for {len(missing)} of {len(rows)} items, for example {missing[0]}; run the stage "
            "again"
        )
    manifest.write_rows(folder / REJECTED, sorted(rejected, key=lambda row: str(row["id"])))
    manifest.write_rows(folder / manifest.NAME, sorted(rows, key=lambda row: str(row["id"])))


def indexed(folder: Path) -> list[Path]:
    """Return the paths of the shards in the order of the index.

    Raises:
        ValueError: The folder has no index, or the index does not list exactly the shards in the folder.
    """
    names = [row["id"] for row in manifest.read_manifest(folder)]
    present = {path.stem for path in folder.glob("*.safetensors")}
    if different := sorted(present.symmetric_difference(names)):
        raise ValueError(
            f"{folder}: the index lists {len(names)} shards, and the folder holds {len(present)}; for example, "
            f"{different[0]} is in only one of the two; run the stage that writes the folder again"
        )
    return [shard_path(folder, name) for name in names]
