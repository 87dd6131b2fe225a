"""Stage measure_latency: teacher and student in one process, time to the first frame and frames per second."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.data.prompt_store import PromptStore
from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.latency import LatencyConfig, compare
from causvid.pipeline import load_pipeline
from causvid.runtime.device import Precision
from causvid.runtime.stage import stage_run
from causvid.shapes import VideoShape

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
        schedule, precision = run.section("schedule", ScheduleConfig), run.section("model.precision", Precision)
        embeddings = PromptStore(prompts)
        results = compare(
            load_pipeline(teacher, vae, schedule, precision),
            load_pipeline(student, vae, schedule, precision),
            text=embeddings(embeddings.evaluation[:1]),
            negative=embeddings([embeddings.negative]),
            video=run.section("video", VideoShape),
            guidance_scale=run.section("sample.guidance_scale", float),
            seed=run.section("seed", int),
            config=run.section("measure_latency", LatencyConfig),
        )
        run.report(results)


if __name__ == "__main__":
    typer.run(main)
