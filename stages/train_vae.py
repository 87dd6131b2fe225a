"""Stage train_vae: fit the video autoencoder to the clips, or take a pretrained one; measure it on held-out clips."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import typer

from causvid.data.manifest import read_manifest, split
from causvid.preparation.reconstructions import write_reconstructions
from causvid.runtime.parallel import launch
from causvid.runtime.stage import stage_run
from causvid.shapes import VideoShape
from causvid.training.trainer import CURVE, EXPORT, read_last
from causvid.training.vae_step import VaeConfig, VaeJob, train_vae

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
    with stage_run("train_vae", params=params, reads=READS, inputs=(clips,), metrics=metrics) as run:
        config = run.section("train_vae", VaeConfig)
        training, held_out = split(read_manifest(clips), config.held_out_clips)
        job = VaeJob(
            config=config,
            vae=run.section("model.vae", dict[str, Any]),
            seed=run.section("seed", int),
            clips=tuple((clips / row["path"]).absolute() for row in training),
            work=run.work.resolve(),
            tracker=run.tracker,
            compute=run.compute,
            watch=run.watch,
            made_from=run.origin.parts(),
        )
        launch(train_vae, job, run.compute, name=run.origin.key, storage=job.work / "ray")
        shutil.rmtree(run.work / "samples", ignore_errors=True)
        scores = write_reconstructions(
            run.work / EXPORT, clips, held_out, run.section("video", VideoShape), crf=run.section("sample.crf", int),
            out=run.work / "samples",
        )  # fmt: skip
        run.report({**read_last(run.work / CURVE), **scores, "steps": config.steps})
        run.publish(run.work / EXPORT, out)
        run.publish(run.work / "samples", samples)
        run.publish(run.work / CURVE, curve)


if __name__ == "__main__":
    typer.run(main)
