"""Preview videos: during a training, the student makes videos of a few fixed prompts and noises."""

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

CRF = 16  # x264's quality
WIDTH = 256  # pixels; smaller videos are enlarged by an integer factor, as the controls of players need space
FOLDER = "previews"  # in the work folder and among the artifacts of the MLflow run


def previews_of(run: Run[Any, StudentRecord], student: Trainee, prompts: PromptStore) -> Previews | None:
    """Return the previews of ``student``, or None if ``run.watch`` asks for none.

    Without the VAE of the latents there are no previews either, and a message goes to stderr: a training from released
    latents may have no VAE, or the VAE of another run.
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
    """A function of the step number that writes one mp4: a video for each prompt, side by side.

    All ranks must call it; rank 0 writes. The prompts are the first of those for evaluation.
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
        """Return the pipeline, which the first preview builds: the VAE takes no memory before."""
        vae, record = load_vae(self.run.inputs["vae"]).to(devices.pick()), self.run.record
        self.pipeline = build_pipeline(self.model, vae, record, record.schedule)
        return self.pipeline
