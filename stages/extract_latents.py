"""Stage extract_latents: encode the clips with the VAE, spread over workers, one shard per clip."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.compute.device import Precision
from causvid.harness.stage import stage_run
from causvid.preparation.latents import LatentConfig, LatentEncoder, extract_latents
from causvid.runtime.shapes import VideoShape

READS = ("video", "model.precision", "extract_latents")


def main(
    clips: Path = typer.Option(...),
    vae: Path = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    with stage_run("extract_latents", params=params, reads=READS, inputs=(clips, vae), metrics=metrics) as run:
        job = LatentEncoder(
            clips=clips.resolve(),
            vae=vae.resolve(),
            out=run.work.resolve() / "out",
            video=run.section("video", VideoShape),
            precision=run.section("model.precision", Precision),
        )
        run.report(extract_latents(job, run.section("extract_latents", LatentConfig), run.compute))
        run.publish(job.out, out)


if __name__ == "__main__":
    typer.run(main)
