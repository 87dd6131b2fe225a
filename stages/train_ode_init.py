"""Stage train_ode_init: fit the causal student to the teacher's trajectories (CausVid eq. 6)."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.diffusion.schedule import ScheduleConfig
from causvid.record import MANY
from causvid.runtime.device import Precision
from causvid.runtime.parallel import launch
from causvid.runtime.stage import stage_run
from causvid.training.ode_step import OdeConfig, OdeJob, train_ode_init
from causvid.training.recording import check_origin, clips_of, require_same_training
from causvid.training.trainer import CURVE, EXPORT, read_last

READS = (
    "seed", "video", "model.vae", "model.frames_per_block", "model.precision", "schedule",
    "pack_lmdb.ode_pairs.source", "train_ode_init",
)  # fmt: skip


def main(
    pairs: Path = typer.Option(...),
    prompts: Path = typer.Option(...),
    teacher: Path = typer.Option(...),
    vae: Path = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    curve: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    inputs = (pairs, prompts, teacher)
    with stage_run("train_ode_init", params=params, reads=READS, inputs=inputs, metrics=metrics) as run:
        job = OdeJob(
            config=run.section("train_ode_init", OdeConfig),
            schedule=run.section("schedule", ScheduleConfig),
            frames_per_block=run.section("model.frames_per_block", int | None),  # type: ignore[arg-type]  # a union is no type[T]
            seed=run.section("seed", int),
            precision=run.section("model.precision", Precision),
            compute=run.compute,
            pairs=pairs.absolute(),
            clips=clips_of(run.section, pairs, item="ode_pairs", vae=vae),
            prompts=prompts.absolute(),
            teacher=teacher.absolute(),
            work=run.work.resolve(),
            tracker=run.tracker,
            watch=run.watch,
            made_from=run.origin.parts(),
            vae=vae.absolute(),
        )
        require_same_training(teacher, job.record(), steps=MANY)
        start = job.config.init.locate("transformer")
        check_origin(start, job.record(), stage="train_ode_init", steps=job.config.steps)
        launch(train_ode_init, job, run.compute, name=run.origin.key, storage=job.work / "ray")
        run.report({**read_last(job.work / CURVE), "steps": job.config.steps})
        run.publish(job.work / EXPORT, out)
        run.publish(job.work / CURVE, curve)


if __name__ == "__main__":
    typer.run(main)
