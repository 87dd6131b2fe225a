"""Generate videos for the evaluation prompts, with the same noise for every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from causvid.data.generated import write_clips
from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos import manifest
from causvid.harness.progress import progress
from causvid.pipeline import CausVidPipeline
from causvid.preparation.samples.config import SampleConfig
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import VideoShape


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
    """Generate videos and, with a causal model, rollouts.

    The noise of a video depends on ``seed`` and the number of the video, but not on the prompt, because recorded scores
    were computed with this noise. Rollouts are written during the generation, so that memory does not limit the length.

    Args:
        pipeline: The model.
        prompts: Embeddings of the evaluation prompts and the negative prompt.
        video: Size, frame rate and number of frames of a training clip.
        config: Params section ``sample``.
        seed: Seed of the noise.
        out: Folder of the mp4 files and their manifest; the rollouts are in ``out``/rollouts.
        few_steps: Whether the model is a student, which generates with the few steps of its schedule. A teacher
            generates with many steps and guidance.

    Returns:
        Numbers of videos and rollouts.
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
