"""Params of the stage ``generate_ode_pairs``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class OdePairConfig:
    """Params section ``generate_ode_pairs``.

    Attributes:
        pairs: Number of pairs.
        batch_size: Number of pairs that a worker solves in one batch.
        guidance_scale: Guidance w of the teacher: uncond + w (cond - uncond).
    """

    pairs: PositiveInt
    batch_size: PositiveInt
    guidance_scale: float
