"""Stage measure_latency: teacher and student in one process, time to the first frame and frames per second."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.compute.device import Precision
from causvid.data.stores.prompt_store import PromptStore
from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.latency import LatencyConfig, compare
from causvid.harness.stage import stage_run
from causvid.pipeline import load_pipeline
from causvid.record import FEW, MANY, read_record, values_of
from causvid.runtime.shapes import VideoShape

READS = (
    "seed", "video", "model.precision", "schedule", "sample.guidance_scale", "measure_latency",
)  # fmt: skip


def main(
    vae: Path = typer.Option(...),
    teacher: Path = typer.Option(...),
    student: Path = typer.Option(...),
    prompts: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    inputs = (vae, teacher, student, prompts)
    with stage_run("measure_latency", params=params, reads=READS, inputs=inputs, metrics=metrics) as run:
        schedule, video = run.section("schedule", ScheduleConfig), run.section("video", VideoShape)
        embeddings = PromptStore(prompts)
        expected = values_of(schedule, video, embeddings.tokens, run.section("model.precision", Precision))
        pipelines = []
        for folder, steps in ((teacher, MANY), (student, FEW)):
            record = read_record(folder, steps=steps)
            record.require(folder, expected)
            pipelines.append(load_pipeline(folder, vae, record, schedule))
        results = compare(
            *pipelines,
            text=embeddings(embeddings.evaluation[:1]),
            negative=embeddings([embeddings.negative]),
            video=video,
            guidance_scale=run.section("sample.guidance_scale", float),
            seed=run.section("seed", int),
            config=run.section("measure_latency", LatencyConfig),
        )
        run.report(results)


if __name__ == "__main__":
    typer.run(main)
