"""The stage ``train_dmd`` and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from causvid.compute.precision import Precision
from causvid.data.stores.config import Source
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Curve, Metrics, Reads, Section, Stage, Untracked, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.methods.dmd.config import DmdConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class TrainDmd(Stage):
    """Distill the student by distribution matching against the bidirectional teacher (CausVid algorithm 1)."""

    HEADLINE = ("{steps} steps", "student loss {student_loss:.3f}")

    latents: Annotated[Path, Reads("LMDB of the latents of the clips")]
    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    teacher: Annotated[Path, Reads("folder of the teacher")]
    student: Annotated[Path, Reads("folder of the initial student, from the stage train_ode_init")]
    vae: Annotated[Path, Untracked("folder of the VAE, which decodes preview videos")]
    out: Annotated[Path, Writes("folder of the student, in diffusers' format")]
    metrics: Annotated[Path, Metrics()]
    curve: Annotated[Path, Curve(y="critic_loss")]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    vae_config: Annotated[dict[str, Any], Section("model.vae")]
    precision: Annotated[Precision, Section("model.precision")]
    schedule: Annotated[ScheduleConfig, Section("schedule")]
    source: Annotated[Source, Section("pack_lmdb.latents.source")]
    config: Annotated[DmdConfig, Section("train_dmd")]

    def run(self, stage: StageRun) -> None:
        """Train the student, and publish the student with its training record."""
        with importing():
            from causvid.methods.dmd.step import train_dmd
            from causvid.methods.shared.recording import clips_of, require_same_training, student_record
            from causvid.record import FEW, MANY, read_student
            from causvid.training.run import new_run
            from causvid.training.trainer import carry_out, publish

        clips = clips_of(self.latents, self.video, self.source, vae=self.vae, config=self.vae_config)
        blocks = read_student(self.student).frames_per_block
        record = student_record(clips, self.schedule, self.prompts, self.precision, blocks)
        require_same_training(self.teacher, record, steps=MANY)
        require_same_training(self.student, record, steps=FEW)
        inputs = {"latents": self.latents, "prompts": self.prompts, "teacher": self.teacher}
        inputs |= {"student": self.student, "vae": self.vae}
        run = new_run(stage, self.config, record, seed=self.seed, precision=self.precision, inputs=inputs)
        carry_out(train_dmd, run, stage)
        publish(run, stage, out=self.out, curve=self.curve)


main = command(TrainDmd)

if __name__ == "__main__":
    run("train_dmd", main)
