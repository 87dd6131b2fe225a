"""Params of the stage ``extract_latents``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Params section ``extract_latents``.

    Attributes:
        batch_size: Number of clips that a worker encodes in one batch.
    """

    batch_size: PositiveInt
