"""What a student makes while it trains: a few fixed prompts and noises, every so many steps, to look at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import WanTransformer3DModel

from causvid.data.prompt_store import PromptStore
from causvid.data.video_writer import write_video
from causvid.models.vae import load_vae
from causvid.runtime import device as devices
from causvid.runtime.distributed import is_main
from causvid.runtime.seeding import generator
from causvid.shapes import VideoShape

if TYPE_CHECKING:
    from causvid.pipeline import CausVidPipeline
    from causvid.training.dmd_step import DmdJob
    from causvid.training.ode_step import OdeJob

CRF = 16  # x264's quality
WIDTH = 256  # pixels to which a smaller video is blown up, by whole numbers: a player's controls alone are 50 high
FOLDER = "previews"  # in the work folder and among the run's artifacts


def previews_of(
    job: OdeJob | DmdJob, model: WanTransformer3DModel, prompts: PromptStore, latents: Sequence[int]
) -> Previews | None:
    """Those of ``model``, whose clips have ``latents`` (F, C, H, W).

    None when no videos are asked for; and, with a word on stderr, without a VAE: who trains from latents made elsewhere
    may have none.
    """
    if not job.watch.samples_every:
        return None
    if job.vae.is_dir():
        return Previews(job, model, prompts, latents)
    if is_main():
        print(f"no sample videos: {job.vae} does not exist", file=sys.stderr)
    return None


class Previews:
    """Called after a step, it writes one mp4: a video per prompt, side by side. Every rank asks, rank 0 writes."""

    def __init__(
        self, job: OdeJob | DmdJob, model: WanTransformer3DModel, prompts: PromptStore, latents: Sequence[int]
    ) -> None:
        """Prompts are the first of those for evaluation."""
        self.job, self.model, self.latents, self.folder = job, model, latents, job.work / FOLDER
        self.prompts = prompts.evaluation[: job.watch.samples]
        self.text = prompts(self.prompts)
        self.made: tuple[CausVidPipeline, VideoShape] | None = None

    def __call__(self, step: int) -> None:
        """Videos after ``step`` steps, below ``work``/previews and in the run's artifacts."""
        pipeline, video = self.made or self._make()
        generators = [generator(self.job.seed, "preview", index) for index in range(len(self.prompts))]
        with devices.autocast(pipeline.device, self.job.precision):
            frames = pipeline(self.text, video, generators, few_steps=True)
        if is_main():
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"step-{step:07d}.mp4"
            row = torch.cat(list(frames), dim=2)  # [F, H, the widths of all, 3]
            times = max(1, WIDTH // video.width)
            shown = row.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
            write_video(path, shown.cpu().numpy(), fps=self.job.fps, crf=CRF)
            self.job.tracker.log_artifact(path, FOLDER)

    def _make(self) -> tuple[CausVidPipeline, VideoShape]:
        """At the first video, not before training."""
        from causvid.pipeline import CausVidPipeline

        device = devices.pick()
        vae, schedule = load_vae(self.job.vae).to(device), self.job.schedule
        pipeline = CausVidPipeline(
            vae=vae,
            transformer=self.model,
            shift=schedule.shift,
            solver_steps=schedule.solver_steps,
            denoising_timesteps=schedule.denoising_timesteps,
            context_timestep=schedule.context_timestep,
        )
        frames, _, height, width = self.latents
        time, space = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial
        shape = VideoShape(height=height * space, width=width * space, frames=(frames - 1) * time + 1, fps=self.job.fps)
        self.made = pipeline, shape
        return self.made
