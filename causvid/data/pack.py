"""Pack shards into an LMDB: one record per shard, in the order of the index."""

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
    """One LMDB of the run.

    Attributes:
        source: Source of the LMDB.
        folder: Folder of the shards or of the released LMDB.
        timesteps: Timesteps of the ODE states in an LMDB of the original CausVid code, which does not record timesteps;
            None in all other cases.
    """

    source: Source
    folder: Path
    timesteps: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.source == Source.OURS and self.timesteps is not None:
            raise ValueError(
                f"pack_lmdb: timesteps is {list(self.timesteps)} with source ours; set it to null, because the shards "
                "of this run record their timesteps"
            )


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Params section ``pack_lmdb``.

    Attributes:
        records_per_transaction: Records per LMDB transaction.
        latents: The LMDB of clips.
        ode_pairs: The LMDB of ODE pairs.
    """

    records_per_transaction: PositiveInt
    latents: PackItem
    ode_pairs: PackItem

    def __post_init__(self) -> None:
        if self.latents.timesteps is not None:
            raise ValueError(
                f"pack_lmdb.latents.timesteps is {list(self.latents.timesteps)}; set it to null, because clips have no "
                "timesteps"
            )
        if self.ode_pairs.source == Source.RELEASED and self.ode_pairs.timesteps is None:
            raise ValueError(
                "pack_lmdb.ode_pairs.timesteps is null, and a released LMDB does not record the timesteps of its "
                "states; set it to [1000, 757, 522, 0], the timesteps of the published LMDB"
            )

    def item(self, name: str) -> PackItem:
        """Return the entry ``name``: latents or ode_pairs."""
        return {"latents": self.latents, "ode_pairs": self.ode_pairs}[name]


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
