"""What a student makes while it trains: a few fixed prompts and noises, every so many steps, to look at."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from diffusers import WanTransformer3DModel

from causvid.data.prompt_store import PromptStore
from causvid.data.video_writer import write_video
from causvid.models.vae import load_vae
from causvid.record import StudentRecord, settings
from causvid.runtime import device as devices
from causvid.runtime.distributed import is_main
from causvid.runtime.seeding import generator

if TYPE_CHECKING:
    from causvid.pipeline import CausVidPipeline
    from causvid.training.dmd_step import DmdJob
    from causvid.training.ode_step import OdeJob

CRF = 16  # x264's quality
WIDTH = 256  # pixels to which a smaller video is blown up, by whole numbers: a player's controls alone are 50 high
FOLDER = "previews"  # in the work folder and among the run's artifacts


def previews_of(
    job: OdeJob | DmdJob, model: WanTransformer3DModel, prompts: PromptStore, record: StudentRecord
) -> Previews | None:
    """Those of ``model``, which is trained for what ``record`` says.

    None when no videos are asked for; and, with a word on stderr, without the VAE of the latents: a training that
    starts from latents made elsewhere may have none, or one that is left from another run.
    """
    if not job.watch.samples_every:
        return None
    if job.vae.is_dir() and record.fits(job.vae):
        return Previews(job, model, prompts, record)
    if is_main():
        problem = "is another VAE than that of the latents" if job.vae.is_dir() else "does not exist"
        print(f"no sample videos: {job.vae} {problem}", file=sys.stderr)
    return None


class Previews:
    """Called after a step, it writes one mp4: a video per prompt, side by side. Every rank asks, rank 0 writes."""

    def __init__(
        self, job: OdeJob | DmdJob, model: WanTransformer3DModel, prompts: PromptStore, record: StudentRecord
    ) -> None:
        """Prompts are the first of those for evaluation."""
        self.job, self.model, self.record, self.folder = job, model, record, job.work / FOLDER
        self.prompts = prompts.evaluation[: job.watch.samples]
        self.text = prompts(self.prompts)
        self.made: CausVidPipeline | None = None

    def __call__(self, step: int) -> None:
        """Videos after ``step`` steps, below ``work``/previews and in the run's artifacts."""
        pipeline, video = self.made or self._make(), self.record.video
        generators = [generator(self.job.seed, "preview", index) for index in range(len(self.prompts))]
        with devices.autocast(pipeline.device, self.job.precision):
            frames = pipeline(self.text, video, generators, few_steps=True)
        if is_main():
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"step-{step:07d}.mp4"
            row = torch.cat(list(frames), dim=2)  # [F, H, the widths of all, 3]
            times = max(1, WIDTH // video.width)
            shown = row.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
            write_video(path, shown.cpu().numpy(), fps=video.fps, crf=CRF)
            self.job.tracker.log_artifact(path, FOLDER)

    def _make(self) -> CausVidPipeline:
        """At the first video, not before training."""
        from causvid.pipeline import CausVidPipeline

        self.made = CausVidPipeline(
            vae=load_vae(self.job.vae).to(devices.pick()),
            transformer=self.model,
            **settings(self.record, self.record.schedule),
        )
        return self.made
