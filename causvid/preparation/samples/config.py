"""Params of the stage ``sample``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Params section ``sample``.

    Attributes:
        videos: Number of videos. If there are more videos than evaluation prompts, the prompts are repeated in order.
        batch_size: Number of videos that are generated in one batch.
        guidance_scale: Guidance scale w for models that generate with many steps.
        rollouts: Number of rollouts that a causal model generates, with the prompts of the first videos.
        rollout_clips: Length of a rollout in training clips.
        crf: Quality of x264; lower is better.
    """

    videos: PositiveInt
    batch_size: PositiveInt
    guidance_scale: float
    rollouts: int
    rollout_clips: PositiveInt
    crf: int
