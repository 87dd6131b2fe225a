"""Stage train_dmd: distribution matching distillation of the student against the teacher (CausVid algorithm 1)."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.compute.device import Precision
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.stage import stage_run
from causvid.methods.dmd.config import DmdConfig
from causvid.methods.dmd.step import train_dmd
from causvid.methods.shared.recording import clips_of, require_same_training, student_record
from causvid.record import FEW, MANY, read_student
from causvid.training.run import new_run
from causvid.training.trainer import carry_out, publish

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
    inputs = {"latents": latents, "prompts": prompts, "teacher": teacher, "student": student}
    with stage_run("train_dmd", params=params, reads=READS, inputs=[*inputs.values()], metrics=metrics) as stage:
        config = stage.section("train_dmd", DmdConfig)
        clips = clips_of(stage.section, latents, item="latents", vae=vae)
        schedule, precision = stage.section("schedule", ScheduleConfig), stage.section("model.precision", Precision)
        record = student_record(clips, schedule, prompts, precision, read_student(student).frames_per_block)
        require_same_training(teacher, record, steps=MANY)
        require_same_training(student, record, steps=FEW)
        run = new_run(stage, config, record, precision=precision, inputs={**inputs, "vae": vae})
        carry_out(train_dmd, run, stage)
        publish(run, stage, out=out, curve=curve)


if __name__ == "__main__":
    typer.run(main)
