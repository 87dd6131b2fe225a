"""The stage ``train_vae`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from causvid.compute.precision import Precision
from causvid.harness.command_line import run
from causvid.harness.declaration import Curve, Metrics, Reads, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.methods.vae.config import VaeConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class TrainVae(Stage):
    """Train the video autoencoder on the clips, or use a pretrained one. Measure its error on held-out clips."""

    HEADLINE = ("{steps} steps", "loss {loss:.3f}", "PSNR {psnr_db:.1f} dB")

    clips: Annotated[Path, Reads("folder of clips with a manifest, from the stage resample")]
    out: Annotated[Path, Writes("folder of the VAE, in diffusers' format")]
    samples: Annotated[Path, Writes("folder of reconstructed held-out clips with a manifest")]
    metrics: Annotated[Path, Metrics()]
    curve: Annotated[Path, Curve(y="loss")]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    network: Annotated[dict[str, Any], Section("model.vae")]
    config: Annotated[VaeConfig, Section("train_vae")]
    crf: Annotated[int, Section("sample.crf")]

    def run(self, stage: StageRun) -> None:
        """Train the VAE, then reconstruct the held-out clips."""
        with importing():
            from causvid.data.videos.manifest import read_manifest, split
            from causvid.methods.vae.reconstructions import write_reconstructions
            from causvid.methods.vae.step import train_vae
            from causvid.training.run import new_run
            from causvid.training.trainer import EXPORT, carry_out, publish

        _, held_out = split(read_manifest(self.clips), self.config.held_out_clips)
        # The VAE is always trained in float32, regardless of model.precision. A VAE has no training record.
        run = new_run(
            stage, self.config, None, seed=self.seed, precision=Precision.FLOAT32, inputs={"clips": self.clips},
            network=self.network,
        )  # fmt: skip
        carry_out(train_vae, run, stage)
        building = run.work / "samples"
        shutil.rmtree(building, ignore_errors=True)
        model = run.work / EXPORT
        stage.report(write_reconstructions(model, self.clips, held_out, self.video, crf=self.crf, out=building))
        stage.publish(building, self.samples)
        publish(run, stage, out=self.out, curve=self.curve)


main = command(TrainVae)

if __name__ == "__main__":
    run("train_vae", main)
