"""Shards to LMDB: sorted by name, one record each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from causvid.data.shards import indexed, read_shard
from causvid.data.stores.latent_store import Record, Source, write_store


@dataclass(frozen=True, kw_only=True)
class PackItem:
    """One LMDB of the run. timesteps: of a released LMDB's ODE states, which does not tell them; null for all else."""

    source: Source
    folder: Path
    timesteps: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.source == Source.OURS and self.timesteps is not None:
            raise ValueError("pack_lmdb: timesteps are for source released; our own shards tell theirs")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Params section ``pack_lmdb``."""

    records_per_transaction: PositiveInt
    latents: PackItem
    ode_pairs: PackItem

    def __post_init__(self) -> None:
        if self.latents.timesteps is not None:
            raise ValueError("pack_lmdb.latents.timesteps must be null: clips have no times")
        if self.ode_pairs.source == Source.RELEASED and self.ode_pairs.timesteps is None:
            raise ValueError(
                "pack_lmdb.ode_pairs.timesteps is null; a released LMDB does not tell the times of its states: as "
                "released they are [1000, 757, 522, 0]"
            )

    def item(self, name: str) -> PackItem:
        """The LMDB ``name``."""
        return {"latents": self.latents, "ode_pairs": self.ode_pairs}[name]


def pack(shards: Path, out: Path, *, per_transaction: int) -> dict[str, Any]:
    """Pack every shard of the folder ``shards`` into the LMDB ``out`` and return its metadata.

    Raises ValueError when shards disagree in shape or timesteps, naming the shard, or with their index.
    """
    paths = indexed(shards)
    timesteps = read_shard(paths[0]).notes.get("timesteps")

    def records() -> Iterator[Record]:
        for path in paths:
            shard = read_shard(path)
            if shard.notes.get("timesteps") != timesteps:
                raise ValueError(f"{path} has timesteps {shard.notes.get('timesteps')}, {paths[0]} has {timesteps}")
            yield Record(shard.latents, shard.notes["caption"])

    return write_store(
        records(),
        out,
        timesteps=json.loads(timesteps) if timesteps else None,
        per_transaction=per_transaction,
    )
