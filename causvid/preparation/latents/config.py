"""Params of the stage ``extract_latents``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Params section ``extract_latents``.

    Attributes:
        batch_size: Clips that a worker encodes at once.
    """

    batch_size: PositiveInt
