"""Stage train_ode_init: fit the causal student to the teacher's trajectories (CausVid eq. 6)."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.compute.device import Precision
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.stage import stage_run
from causvid.methods.ode_init.config import OdeConfig
from causvid.methods.ode_init.step import train_ode_init
from causvid.methods.shared.recording import check_origin, clips_of, require_same_training, student_record
from causvid.record import MANY
from causvid.training.run import new_run
from causvid.training.trainer import carry_out, publish

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
    inputs = {"pairs": pairs, "prompts": prompts, "teacher": teacher}
    with stage_run("train_ode_init", params=params, reads=READS, inputs=[*inputs.values()], metrics=metrics) as stage:
        clips = clips_of(stage.section, pairs, item="ode_pairs", vae=vae)
        schedule, precision = stage.section("schedule", ScheduleConfig), stage.section("model.precision", Precision)
        blocks = stage.section("model.frames_per_block", int | None)  # type: ignore[arg-type]  # a union is no type[T]
        record = student_record(clips, schedule, prompts, precision, blocks)
        require_same_training(teacher, record, steps=MANY)
        config = stage.section("train_ode_init", OdeConfig)
        check_origin(config.init.locate("transformer"), record, stage="train_ode_init", steps=config.steps)
        run = new_run(stage, config, record, precision=precision, inputs={**inputs, "vae": vae})
        carry_out(train_ode_init, run, stage)
        publish(run, stage, out=out, curve=curve)


if __name__ == "__main__":
    typer.run(main)
