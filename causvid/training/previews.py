"""What a student makes while it trains: a few fixed prompts and noises, every so many steps, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import WanTransformer3DModel

from causvid.data.prompt_store import PromptStore
from causvid.data.video_writer import write_video
from causvid.diffusion.schedule import ScheduleConfig
from causvid.models.vae import load_vae
from causvid.runtime import device as devices
from causvid.runtime.distributed import is_main
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker
from causvid.shapes import VideoShape

if TYPE_CHECKING:
    from causvid.pipeline import CausVidPipeline

CRF = 16  # x264's quality
FOLDER = "previews"  # in the work folder and among the run's artifacts


class Previews:
    """Called after a step, it writes one mp4: a video per prompt, side by side. Every rank asks, rank 0 writes."""

    def __init__(
        self,
        model: WanTransformer3DModel,
        *,
        vae: Path,
        schedule: ScheduleConfig,
        precision: devices.Precision,
        prompts: PromptStore,
        count: int,
        seed: int,
        latents: Sequence[int],
        fps: int,
        work: Path,
        tracker: Tracker,
    ) -> None:
        """Latents are those of a clip, (F, C, H, W); count: of the evaluation prompts, the first."""
        self.model, self.vae, self.schedule, self.precision, self.seed = model, vae, schedule, precision, seed
        self.latents, self.fps, self.folder, self.tracker = latents, fps, work / FOLDER, tracker
        self.prompts, self.text = prompts.evaluation[:count], prompts(prompts.evaluation[:count])
        self.made: tuple[CausVidPipeline, VideoShape] | None = None

    def __call__(self, step: int) -> None:
        """Videos after ``step`` steps, below ``work``/previews and in the run's artifacts."""
        pipeline, video = self.made or self._make()
        generators = [generator(self.seed, "preview", index) for index in range(len(self.prompts))]
        with devices.autocast(pipeline.device, self.precision):
            frames = pipeline(self.text, video, generators, few_steps=True)
        if is_main():
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"step-{step:07d}.mp4"
            write_video(path, torch.cat(list(frames), dim=2).cpu().numpy(), fps=self.fps, crf=CRF)
            self.tracker.log_artifact(path, FOLDER)

    def _make(self) -> tuple[CausVidPipeline, VideoShape]:
        """At the first video: a training that shows none imports and loads nothing for it."""
        from causvid.pipeline import CausVidPipeline

        device = devices.pick()
        vae, schedule = load_vae(self.vae).to(device), self.schedule
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
        shape = VideoShape(height=height * space, width=width * space, frames=(frames - 1) * time + 1, fps=self.fps)
        self.made = pipeline, shape
        return self.made
