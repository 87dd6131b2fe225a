"""Params of the LMDBs and of the prompt embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import PositiveInt


class Source(StrEnum):
    """Origin of an LMDB: the shards of this run (OURS), or an LMDB that the original CausVid code wrote (RELEASED)."""

    OURS = "ours"
    RELEASED = "released"


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


def require_tokens(tokens: int) -> int:
    """Return ``tokens``, the length to which prompts are padded. Raises ValueError if ``tokens`` is below 1."""
    if tokens < 1:
        raise ValueError(
            f"model.text_tokens is {tokens}; a prompt needs 1 token at least: set it to the length of the longest "
            "prompt, for example 12 for the toy world or 512 for Wan2.1"
        )
    return tokens
