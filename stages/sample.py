"""Stage sample: videos for the evaluation prompts, the same noise for every model; long rollouts of causal ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import typer

from causvid.compute.device import Precision
from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos import manifest
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.stage import stage_run
from causvid.pipeline import load_pipeline
from causvid.preparation.samples import SampleConfig, sample
from causvid.record import FEW, read_record, values_of
from causvid.runtime.shapes import VideoShape

READS = ("seed", "video", "model.precision", "schedule", "sample")
SHOWN = 4  # videos that go to MLflow


def main(
    model: str = typer.Option(...),
    steps: Literal["many", "few"] = typer.Option(...),
    checkpoint: Path = typer.Option(...),
    vae: Path = typer.Option(...),
    prompts: Path = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths, a name and the kind of model; numbers come from the params file."""
    inputs = (checkpoint, vae, prompts)
    with stage_run("sample", item=model, params=params, reads=READS, inputs=inputs, metrics=metrics) as run:
        building = run.work / "out"
        shutil.rmtree(building, ignore_errors=True)
        schedule, video, texts = (
            run.section("schedule", ScheduleConfig),
            run.section("video", VideoShape),
            PromptStore(prompts),
        )
        record = read_record(checkpoint, steps=steps)
        record.require(checkpoint, values_of(schedule, video, texts.tokens, run.section("model.precision", Precision)))
        pipeline, config = load_pipeline(checkpoint, vae, record, schedule), run.section("sample", SampleConfig)
        seed, few_steps = run.section("seed", int), steps == FEW
        run.report(sample(pipeline, texts, record.video, config, seed=seed, out=building, few_steps=few_steps))
        shown = [row["path"] for row in manifest.read_manifest(building)[:SHOWN]]
        for name in (manifest.NAME, *shown):
            run.tracker.log_artifact(building / name, "samples")
        run.publish(building, out)


if __name__ == "__main__":
    typer.run(main)
