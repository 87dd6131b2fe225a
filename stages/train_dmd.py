"""Stage train_dmd: distribution matching distillation of the student against the teacher (CausVid algorithm 1)."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.diffusion.schedule import ScheduleConfig
from causvid.record import FEW, MANY, read_student
from causvid.runtime.device import Precision
from causvid.runtime.parallel import launch
from causvid.runtime.stage import stage_run
from causvid.training.dmd_step import DmdConfig, DmdJob, train_dmd
from causvid.training.recording import clips_of, require_same_training
from causvid.training.trainer import CURVE, EXPORT, read_last

READS = ("seed", "video", "model.vae", "model.precision", "schedule", "pack_lmdb.latents.source", "train_dmd")


def main(
    latents: Path = typer.Option(...),
    prompts: Path = typer.Option(...),
    teacher: Path = typer.Option(...),
    student: Path = typer.Option(...),
    vae: Path = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    curve: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    inputs = (latents, prompts, teacher, student)
    with stage_run("train_dmd", params=params, reads=READS, inputs=inputs, metrics=metrics) as run:
        job = DmdJob(
            config=run.section("train_dmd", DmdConfig),
            schedule=run.section("schedule", ScheduleConfig),
            seed=run.section("seed", int),
            precision=run.section("model.precision", Precision),
            compute=run.compute,
            latents=latents.absolute(),
            clips=clips_of(run.section, latents, item="latents", vae=vae),
            prompts=prompts.absolute(),
            teacher=teacher.absolute(),
            student=student.absolute(),
            work=run.work.resolve(),
            tracker=run.tracker,
            watch=run.watch,
            made_from=run.origin.parts(),
            vae=vae.absolute(),
        )
        record = job.record(read_student(student).frames_per_block)
        require_same_training(teacher, record, steps=MANY)
        require_same_training(student, record, steps=FEW)
        launch(train_dmd, job, run.compute, name=run.origin.key, storage=job.work / "ray")
        run.report({**read_last(job.work / CURVE), "steps": job.config.steps})
        run.publish(job.work / EXPORT, out)
        run.publish(job.work / CURVE, curve)


if __name__ == "__main__":
    typer.run(main)
