"""Write preview videos: during training, the student generates videos from a few fixed prompts and noises."""

from __future__ import annotations

import sys
from typing import Any

import torch

from causvid.compute import device as devices
from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos.video_writer import write_video
from causvid.methods.shared.networks import Trainee
from causvid.pipeline import CausVidPipeline, build_pipeline
from causvid.record import StudentRecord
from causvid.runtime.seeding import generator
from causvid.training.distributed import is_main
from causvid.training.run import Run
from causvid.wan.vae.vae import load_vae

CRF = 16  # constant rate factor of x264; a lower value means higher quality
WIDTH = 256  # pixels; smaller videos are enlarged by an integer factor, because the controls of a player need space
FOLDER = "previews"  # subfolder of the work folder, and of the artifacts of the MLflow run


def previews_of(run: Run[Any, StudentRecord], student: Trainee, prompts: PromptStore) -> Previews | None:
    """Return the previews of ``student``, or None if ``run.watch`` disables previews.

    Without the VAE of the latents, the function also returns None and prints a message on stderr. A training on latents
    of the original CausVid code may have no VAE, or the VAE of another run.
    """
    if not run.watch.samples_every:
        return None
    vae = run.inputs["vae"]
    if vae.is_dir() and run.record.fits(vae):
        return Previews(run, student, prompts)
    if is_main():
        problem = "is another VAE than that of the latents" if vae.is_dir() else "does not exist"
        print(f"no sample videos: {vae} {problem}", file=sys.stderr)
    return None


class Previews:
    """Write an mp4 file for a step number, in which the videos of all prompts are side by side.

    All ranks must call this object; only rank 0 writes. The prompts are the first evaluation prompts.
    """

    def __init__(self, run: Run[Any, StudentRecord], student: Trainee, prompts: PromptStore) -> None:
        assert student.average is not None, "previews show the weight average"
        self.run, self.model, self.folder = run, student.average.module, run.work / FOLDER
        self.prompts = prompts.evaluation[: run.watch.samples]
        self.text = prompts(self.prompts)
        self.pipeline: CausVidPipeline | None = None

    def __call__(self, step: int) -> None:
        """Write the videos after ``step`` steps to ``work``/previews, and log them as an artifact."""
        pipeline, video = self.pipeline or self._new_pipeline(), self.run.record.video
        generators = [generator(self.run.seed, "preview", index) for index in range(len(self.prompts))]
        with devices.autocast(pipeline.device, self.run.precision):
            frames = pipeline(self.text, video, generators, few_steps=True)
        if is_main():
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"step-{step:07d}.mp4"
            row = torch.cat(list(frames), dim=2)  # [F, H, sum of the widths, 3]
            times = max(1, WIDTH // video.width)
            shown = row.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
            write_video(path, shown.cpu().numpy(), fps=video.fps, crf=CRF)
            self.run.tracker.log_artifact(path, FOLDER)

    def _new_pipeline(self) -> CausVidPipeline:
        """Build the pipeline at the first preview, so that the VAE needs no memory before."""
        vae, record = load_vae(self.run.inputs["vae"]).to(devices.pick()), self.run.record
        self.pipeline = build_pipeline(self.model, vae, record, record.schedule)
        return self.pipeline
