"""Pack shards into an LMDB: one record per shard, in the order of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from causvid.data.shards import indexed, read_shard
from causvid.data.stores.latent_store import Record, write_store


def pack(shards: Path, out: Path, *, per_transaction: int) -> dict[str, Any]:
    """Pack every shard of a folder into a new LMDB.

    Args:
        shards: Folder of the shards and their index.
        out: Folder of the LMDB; it must not exist.
        per_transaction: Records per LMDB transaction.

    Returns:
        The metadata of the LMDB.

    Raises:
        ValueError: The shards differ in shape or timesteps, a shard is damaged, or the index lists other shards.
    """
    paths = indexed(shards)
    timesteps = read_shard(paths[0]).notes.get("timesteps")

    def records() -> Iterator[Record]:
        for path in paths:
            shard = read_shard(path)
            if shard.notes.get("timesteps") != timesteps:
                raise ValueError(
                    f"{path} has timesteps {shard.notes.get('timesteps')}, but {paths[0]} has {timesteps}; delete the "
                    "folder and run the stage that writes it again"
                )
            yield Record(shard.latents, shard.notes["caption"])

    return write_store(
        records(),
        out,
        timesteps=json.loads(timesteps) if timesteps else None,
        per_transaction=per_transaction,
    )
