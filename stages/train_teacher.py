"""Stage train_teacher: fit the teacher, bidirectional or causal, by flow matching, or take a pretrained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from causvid.runtime.device import Precision
from causvid.runtime.parallel import launch
from causvid.runtime.stage import stage_run
from causvid.training.recording import check_origin, clips_of
from causvid.training.teacher_step import TeacherConfig, TeacherJob, train_teacher
from causvid.training.trainer import CURVE, EXPORT, read_last

READS = (
    "seed", "video", "model.vae", "model.transformer", "model.frames_per_block", "model.precision", "schedule.shift",
    "pack_lmdb.latents.source", "train_teacher",
)  # fmt: skip


def main(
    latents: Path = typer.Option(...),
    prompts: Path = typer.Option(...),
    vae: Path = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    curve: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    with stage_run("train_teacher", params=params, reads=READS, inputs=(latents, prompts), metrics=metrics) as run:
        job = TeacherJob(
            config=run.section("train_teacher", TeacherConfig),
            transformer=run.section("model.transformer", dict[str, Any]),
            frames_per_block=run.section("model.frames_per_block", int | None),  # type: ignore[arg-type]  # a union is no type[T]
            shift=run.section("schedule.shift", float),
            seed=run.section("seed", int),
            precision=run.section("model.precision", Precision),
            compute=run.compute,
            latents=latents.absolute(),
            clips=clips_of(run.section, latents, item="latents", vae=vae),
            prompts=prompts.absolute(),
            work=run.work.resolve(),
            tracker=run.tracker,
            watch=run.watch,
            made_from=run.origin.parts(),
        )
        start = job.config.init.locate("transformer")
        check_origin(start, job.record(), stage="train_teacher", steps=job.config.steps)
        launch(train_teacher, job, run.compute, name=run.origin.key, storage=job.work / "ray")
        run.report({**read_last(job.work / CURVE), "steps": job.config.steps})
        run.publish(job.work / EXPORT, out)
        run.publish(job.work / CURVE, curve)


if __name__ == "__main__":
    typer.run(main)
