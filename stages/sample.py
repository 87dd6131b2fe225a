"""The stage ``sample`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from causvid.compute.precision import Precision
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Item, Metrics, Option, Reads, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.preparation.samples.config import SampleConfig
from causvid.runtime.shapes import VideoShape

SHOWN = 4  # videos that are logged in MLflow


@dataclass(frozen=True, kw_only=True)
class Sample(Stage):
    """Generate videos for the evaluation prompts from the same noise for all models, and rollouts for causal models."""

    HEADLINE = ("{videos} videos", "{rollouts} rollouts")

    model: Annotated[str, Item("name of the model in the reports")]
    steps: Annotated[Literal["many", "few"], Option("many for a teacher, few for a student")]
    checkpoint: Annotated[Path, Reads("folder of the model")]
    vae: Annotated[Path, Reads("folder of the VAE")]
    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    out: Annotated[Path, Writes("folder of videos with a manifest")]
    metrics: Annotated[Path, Metrics()]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    precision: Annotated[Precision, Section("model.precision")]
    schedule: Annotated[ScheduleConfig, Section("schedule")]
    config: Annotated[SampleConfig, Section("sample")]

    def run(self, stage: StageRun) -> None:
        """Generate the videos."""
        with importing():
            from causvid.data.stores.prompt_store import PromptStore
            from causvid.data.videos import manifest
            from causvid.pipeline import load_pipeline
            from causvid.preparation.samples.sampling import sample
            from causvid.record import FEW, read_record, values_of

        building = stage.work / "out"
        shutil.rmtree(building, ignore_errors=True)
        texts, record = PromptStore(self.prompts), read_record(self.checkpoint, steps=self.steps)
        record.require(self.checkpoint, values_of(self.schedule, self.video, texts.tokens, self.precision))
        pipeline, few_steps = load_pipeline(self.checkpoint, self.vae, record, self.schedule), self.steps == FEW
        counts = sample(pipeline, texts, record.video, self.config, seed=self.seed, out=building, few_steps=few_steps)
        stage.report(counts)
        shown = [row["path"] for row in manifest.read_manifest(building)[:SHOWN]]
        for name in (manifest.NAME, *shown):
            stage.tracker.log_artifact(building / name, "samples")
        stage.publish(building, self.out)


main = command(Sample)

if __name__ == "__main__":
    run("sample", main)
