"""The stage ``generate_ode_pairs`` and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.compute.precision import Precision
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Metrics, Reads, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.preparation.ode_pairs.config import OdePairConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class GenerateOdePairs(Stage):
    """Solve the teacher's ODE for many prompts on all workers, and save the states that train the student."""

    HEADLINE = ("{pairs} pairs", "{resumed} of them already done", "{rejected} rejected")

    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    vae: Annotated[Path, Reads("folder of the VAE, whose strides give the shape of the latents")]
    teacher: Annotated[Path, Reads("folder of the teacher")]
    out: Annotated[Path, Writes("folder of shards")]
    metrics: Annotated[Path, Metrics()]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    precision: Annotated[Precision, Section("model.precision")]
    schedule: Annotated[ScheduleConfig, Section("schedule")]
    captions: Annotated[Path, Section("encode_prompts.captions")]
    config: Annotated[OdePairConfig, Section("generate_ode_pairs")]

    def run(self, stage: StageRun) -> None:
        """Solve the ODE for the prompts whose shards do not exist yet."""
        with importing():
            from causvid.data.captions import read_captions
            from causvid.data.stores.prompt_store import PromptStore
            from causvid.preparation.ode_pairs.solving import OdePairSolver, generate_ode_pairs
            from causvid.record import MANY, read_record, read_vae_config, values_of
            from causvid.wan.formats.configs import latent_shape

        record = read_record(self.teacher, steps=MANY)
        tokens = PromptStore(self.prompts).tokens
        record.require(self.teacher, values_of(self.schedule, self.video, tokens, self.precision))
        record.require_vae(self.teacher, self.vae)
        solver = OdePairSolver(
            teacher=self.teacher.absolute(),
            prompts=self.prompts.absolute(),
            out=stage.work.resolve() / "out",
            schedule=self.schedule,
            latent=latent_shape(read_vae_config(self.vae), self.video),
            guidance_scale=self.config.guidance_scale,
            precision=self.precision,
            seed=self.seed,
        )
        stage.report(generate_ode_pairs(solver, read_captions(self.captions), self.config, stage.compute))
        stage.publish(solver.out, self.out)


main = command(GenerateOdePairs)

if __name__ == "__main__":
    run("generate_ode_pairs", main)
