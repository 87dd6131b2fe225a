"""The stage ``train_teacher`` and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from causvid.compute.precision import Precision
from causvid.data.stores.config import Source
from causvid.harness.command_line import run
from causvid.harness.declaration import Curve, Metrics, Reads, Section, Stage, Untracked, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.methods.teacher.config import TeacherConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(Stage):
    """Train the bidirectional teacher by flow matching, or publish a pretrained teacher."""

    HEADLINE = ("{steps} steps", "loss {loss:.3f}")

    latents: Annotated[Path, Reads("LMDB of the latents of the clips")]
    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    vae: Annotated[Path, Untracked("folder of the VAE, whose normalisation enters the training record")]
    out: Annotated[Path, Writes("folder of the teacher, in diffusers' format")]
    metrics: Annotated[Path, Metrics()]
    curve: Annotated[Path, Curve(y="loss")]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    vae_config: Annotated[dict[str, Any], Section("model.vae")]
    network: Annotated[dict[str, Any], Section("model.transformer")]
    precision: Annotated[Precision, Section("model.precision")]
    shift: Annotated[float, Section("schedule.shift")]
    source: Annotated[Source, Section("pack_lmdb.latents.source")]
    config: Annotated[TeacherConfig, Section("train_teacher")]

    def run(self, stage: StageRun) -> None:
        """Train the teacher, and publish the teacher with its training record."""
        with importing():
            from causvid.methods.shared.recording import check_origin, clips_of, teacher_record
            from causvid.methods.teacher.step import train_teacher
            from causvid.training.run import new_run
            from causvid.training.trainer import carry_out, publish

        clips = clips_of(self.latents, self.video, self.source, vae=self.vae, config=self.vae_config)
        record = teacher_record(clips, self.shift, self.prompts, self.precision, None)
        check_origin(self.config.init.locate("transformer"), record, stage=self.name(), steps=self.config.steps)
        inputs = {"latents": self.latents, "prompts": self.prompts}
        run = new_run(
            stage, self.config, record, seed=self.seed, precision=self.precision, inputs=inputs, network=self.network
        )
        carry_out(train_teacher, run, stage)
        publish(run, stage, out=self.out, curve=self.curve)


main = command(TrainTeacher)

if __name__ == "__main__":
    run("train_teacher", main)
