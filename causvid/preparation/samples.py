"""Generate videos for the evaluation prompts, with noise that is the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from causvid.data.generated import write_clips
from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos import manifest
from causvid.harness.progress import progress
from causvid.pipeline import CausVidPipeline
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Params section ``sample``. videos: how many, of the evaluation prompts in turn; rollouts: how many also run long.

    guidance_scale is of models that make many steps; rollout_clips is a rollout's length in training clips; crf the
    quality of the mp4s.
    """

    videos: PositiveInt
    batch_size: PositiveInt
    guidance_scale: float
    rollouts: int
    rollout_clips: PositiveInt
    crf: int


def sample(
    pipeline: CausVidPipeline,
    prompts: PromptStore,
    video: VideoShape,
    config: SampleConfig,
    *,
    seed: int,
    out: Path,
    few_steps: bool,
) -> dict[str, float]:
    """Write ``out``/manifest.jsonl with its mp4s, and ``out``/rollouts likewise for a causal model.

    The noise of a video depends on ``seed`` and on the number of the video, not on its prompt: recorded scores belong
    to that noise. Rollouts are written while they are made, so that their length is not limited by memory.

    few_steps: whether the model is a student that makes the schedule's few steps; else it makes many, with guidance.
    """
    chosen = [prompts.evaluation[k % len(prompts.evaluation)] for k in range(config.videos)]
    negative, scale = prompts([prompts.negative]), config.guidance_scale
    starts = range(0, len(chosen), config.batch_size)
    rows: list[dict[str, Any]] = []
    for start in progress(starts, total=len(starts), what="sample"):
        group = chosen[start : start + config.batch_size]
        generators = [generator(seed, "sample", start + k) for k in range(len(group))]
        clips = pipeline(prompts(group), video, generators, negative, scale, few_steps=few_steps)
        rows += write_clips(out, group, clips, video, config.crf, first=start)
    manifest.write_rows(out / manifest.NAME, rows)
    results: dict[str, float] = {"videos": len(rows)}
    if pipeline.is_causal and config.rollouts:
        frames, rows = config.rollout_clips * video.frames, []
        for start in range(0, config.rollouts, config.batch_size):
            group = chosen[start : min(start + config.batch_size, config.rollouts)]
            generators = [generator(seed, "rollout", start + k) for k in range(len(group))]
            long = pipeline.rollout(prompts(group), video, generators, frames, negative, scale, few_steps=few_steps)
            rows += write_clips(out / "rollouts", group, long, video, config.crf, first=start)
        manifest.write_rows(out / "rollouts" / manifest.NAME, rows)
        results["rollouts"] = len(rows)
    return results
