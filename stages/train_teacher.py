"""Stage train_teacher: fit the teacher, bidirectional or causal, by flow matching, or take a pretrained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from causvid.compute.device import Precision
from causvid.harness.stage import stage_run
from causvid.methods.shared.recording import check_origin, clips_of, teacher_record
from causvid.methods.teacher.config import TeacherConfig
from causvid.methods.teacher.step import train_teacher
from causvid.training.run import new_run
from causvid.training.trainer import carry_out, publish

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
    inputs = {"latents": latents, "prompts": prompts}
    with stage_run("train_teacher", params=params, reads=READS, inputs=[*inputs.values()], metrics=metrics) as stage:
        clips = clips_of(stage.section, latents, item="latents", vae=vae)
        config, precision = stage.section("train_teacher", TeacherConfig), stage.section("model.precision", Precision)
        shift = stage.section("schedule.shift", float)
        blocks = stage.section("model.frames_per_block", int | None)  # type: ignore[arg-type]  # a union is no type[T]
        record = teacher_record(clips, shift, prompts, precision, blocks, causal=config.causal)
        check_origin(config.init.locate("transformer"), record, stage="train_teacher", steps=config.steps)
        network = stage.section("model.transformer", dict[str, Any])
        run = new_run(stage, config, record, precision=precision, inputs=inputs, network=network)
        carry_out(train_teacher, run, stage)
        publish(run, stage, out=out, curve=curve)


if __name__ == "__main__":
    typer.run(main)
