"""Stage generate_ode_pairs: solve the teacher's ODE for many prompts; keep the states the student will see."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.compute.device import Precision
from causvid.data.captions import read_captions
from causvid.data.stores.prompt_store import PromptStore
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.stage import stage_run
from causvid.preparation.ode_pairs import OdePairConfig, OdePairSolver, generate_ode_pairs
from causvid.record import MANY, read_record, values_of
from causvid.runtime.shapes import LatentShape, VideoShape
from causvid.wan.vae.vae import load_vae, temporal_stride

READS = ("seed", "video", "model.precision", "schedule", "encode_prompts.captions", "generate_ode_pairs")


def main(
    prompts: Path = typer.Option(...),
    vae: Path = typer.Option(...),
    teacher: Path = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths of the pipeline; numbers and the user's paths come from the params file."""
    inputs = (prompts, vae, teacher)
    with stage_run("generate_ode_pairs", params=params, reads=READS, inputs=inputs, metrics=metrics) as run:
        config, model = run.section("generate_ode_pairs", OdePairConfig), load_vae(vae)
        schedule, video = run.section("schedule", ScheduleConfig), run.section("video", VideoShape)
        precision, record = run.section("model.precision", Precision), read_record(teacher, steps=MANY)
        record.require(teacher, values_of(schedule, video, PromptStore(prompts).tokens, precision))
        record.require_vae(teacher, vae)
        job = OdePairSolver(
            teacher=teacher.absolute(),
            prompts=prompts.absolute(),
            out=run.work.resolve() / "out",
            schedule=schedule,
            latent=LatentShape.of(
                video,
                channels=model.config.z_dim,
                temporal_stride=temporal_stride(model),
                spatial_stride=model.config.scale_factor_spatial,
            ),
            guidance_scale=config.guidance_scale,
            precision=precision,
            seed=run.section("seed", int),
        )
        captions = read_captions(run.section("encode_prompts.captions", Path))
        run.report(generate_ode_pairs(job, captions, config, run.compute))
        run.publish(job.out, out)


if __name__ == "__main__":
    typer.run(main)
