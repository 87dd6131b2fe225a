"""Stage train_vae: fit the video autoencoder to the clips, or take a pretrained one; measure it on held-out clips."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import typer

from causvid.compute.device import Precision
from causvid.data.videos.manifest import read_manifest, split
from causvid.harness.stage import stage_run
from causvid.methods.vae.config import VaeConfig
from causvid.methods.vae.reconstructions import write_reconstructions
from causvid.methods.vae.step import train_vae
from causvid.runtime.shapes import VideoShape
from causvid.training.run import new_run
from causvid.training.trainer import EXPORT, carry_out, publish

READS = ("seed", "video", "model.vae", "train_vae", "sample.crf")


def main(
    clips: Path = typer.Option(...),
    out: Path = typer.Option(...),
    samples: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    curve: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    with stage_run("train_vae", params=params, reads=READS, inputs=(clips,), metrics=metrics) as stage:
        config, network = stage.section("train_vae", VaeConfig), stage.section("model.vae", dict[str, Any])
        _, held_out = split(read_manifest(clips), config.held_out_clips)
        # The VAE is always trained in float32, regardless of model.precision. It has no training record.
        precision, inputs = Precision.FLOAT32, {"clips": clips}
        run = new_run(stage, config, None, precision=precision, inputs=inputs, network=network)
        carry_out(train_vae, run, stage)
        building = run.work / "samples"
        shutil.rmtree(building, ignore_errors=True)
        video, crf = stage.section("video", VideoShape), stage.section("sample.crf", int)
        stage.report(write_reconstructions(run.work / EXPORT, clips, held_out, video, crf=crf, out=building))
        stage.publish(building, samples)
        publish(run, stage, out=out, curve=curve)


if __name__ == "__main__":
    typer.run(main)
