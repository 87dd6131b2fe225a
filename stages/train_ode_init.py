"""The stage ``train_ode_init`` and its command line."""

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
from causvid.methods.ode_init.config import OdeConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class TrainOdeInit(Stage):
    """Train the causal student on the ODE trajectories of the teacher (CausVid eq. 6)."""

    HEADLINE = ("{steps} steps", "loss {loss:.3f}")

    pairs: Annotated[Path, Reads("LMDB of ODE pairs")]
    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    start: Annotated[Path, Reads("folder of the causal teacher, from which the student starts by default")]
    vae: Annotated[Path, Untracked("folder of the VAE, which decodes preview videos")]
    out: Annotated[Path, Writes("folder of the student, in diffusers' format")]
    metrics: Annotated[Path, Metrics()]
    curve: Annotated[Path, Curve(y="loss")]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    vae_config: Annotated[dict[str, Any], Section("model.vae")]
    frames_per_block: Annotated[int | None, Section("model.frames_per_block")]
    precision: Annotated[Precision, Section("model.precision")]
    schedule: Annotated[ScheduleConfig, Section("schedule")]
    source: Annotated[Source, Section("pack_lmdb.ode_pairs.source")]
    config: Annotated[OdeConfig, Section("train_ode_init")]

    def run(self, stage: StageRun) -> None:
        """Train the student, and publish the student with its training record."""
        with importing():
            from causvid.methods.ode_init.step import train_ode_init
            from causvid.methods.shared.recording import check_origin, clips_of, require_same_training, student_record
            from causvid.record import MANY
            from causvid.training.run import new_run
            from causvid.training.trainer import carry_out, publish

        clips = clips_of(self.pairs, self.video, self.source, vae=self.vae, config=self.vae_config)
        record = student_record(clips, self.schedule, self.prompts, self.precision, self.frames_per_block)
        require_same_training(self.start, record, steps=MANY)
        check_origin(self.config.init.locate("transformer"), record, stage=self.name(), steps=self.config.steps)
        inputs = {"pairs": self.pairs, "prompts": self.prompts, "start": self.start, "vae": self.vae}
        run = new_run(stage, self.config, record, seed=self.seed, precision=self.precision, inputs=inputs)
        carry_out(train_ode_init, run, stage)
        stage.report({"start": self.config.init.source("transformer", default=self.start)})
        publish(run, stage, out=self.out, curve=self.curve)


main = command(TrainOdeInit)

if __name__ == "__main__":
    run("train_ode_init", main)
