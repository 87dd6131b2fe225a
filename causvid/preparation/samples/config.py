"""Params of the stage ``sample``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Params section ``sample``.

    Attributes:
        videos: Number of videos. They use the evaluation prompts one after another, and from the beginning again.
        batch_size: Videos that are generated at once.
        guidance_scale: Guidance w of models of many steps.
        rollouts: Number of rollouts by a causal model, with the prompts of the first videos.
        rollout_clips: Length of a rollout in training clips.
        crf: Quality of x264; lower is better.
    """

    videos: PositiveInt
    batch_size: PositiveInt
    guidance_scale: float
    rollouts: int
    rollout_clips: PositiveInt
    crf: int
