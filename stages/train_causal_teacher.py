"""The stage ``train_causal_teacher`` and its command line."""

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
class TrainCausalTeacher(Stage):
    """Train the causal teacher from the weights of the teacher, or publish a pretrained causal teacher."""

    HEADLINE = ("{steps} steps", "loss {loss:.3f}")

    latents: Annotated[Path, Reads("LMDB of the latents of the clips")]
    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    teacher: Annotated[Path, Reads("folder of the bidirectional teacher, whose weights are the default start")]
    vae: Annotated[Path, Untracked("folder of the VAE, whose normalisation enters the training record")]
    out: Annotated[Path, Writes("folder of the causal teacher, in diffusers' format")]
    metrics: Annotated[Path, Metrics()]
    curve: Annotated[Path, Curve(y="loss")]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    vae_config: Annotated[dict[str, Any], Section("model.vae")]
    frames_per_block: Annotated[int | None, Section("model.frames_per_block")]
    precision: Annotated[Precision, Section("model.precision")]
    shift: Annotated[float, Section("schedule.shift")]
    source: Annotated[Source, Section("pack_lmdb.latents.source")]
    config: Annotated[TeacherConfig, Section("train_causal_teacher")]

    def run(self, stage: StageRun) -> None:
        """Train the causal teacher, and publish it with its training record."""
        with importing():
            from causvid.methods.shared.recording import check_origin, clips_of, require_same_training, teacher_record
            from causvid.methods.teacher.step import train_teacher
            from causvid.record import MANY
            from causvid.training.run import new_run
            from causvid.training.trainer import carry_out, publish

        clips = clips_of(self.latents, self.video, self.source, vae=self.vae, config=self.vae_config)
        record = teacher_record(clips, self.shift, self.prompts, self.precision, self.frames_per_block)
        require_same_training(self.teacher, record, steps=MANY)
        found = self.config.init.locate("transformer")
        check_origin(found, record, stage=self.name(), steps=self.config.steps)
        inputs = {"latents": self.latents, "prompts": self.prompts, "start": self.teacher}
        run = new_run(stage, self.config, record, seed=self.seed, precision=self.precision, inputs=inputs)
        carry_out(train_teacher, run, stage)
        start = self.config.init.source("transformer", default=self.teacher)
        stage.report({"start": start, "model": self._model(found or self.teacher)})
        publish(run, stage, out=self.out, curve=self.curve)

    def _model(self, start: Path) -> str:
        """Return whether the resulting model is bidirectional, a converted bidirectional model, or a causal teacher."""
        from causvid.wan.formats.weight_files import saved_config

        if self.frames_per_block is None:
            return "bidirectional"
        is_causal = "frames_per_block" in saved_config(start, "transformer")
        return "causal" if is_causal or self.config.steps else "converted"


main = command(TrainCausalTeacher)

if __name__ == "__main__":
    run("train_causal_teacher", main)
