"""The stage ``extract_latents`` and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.compute.precision import Precision
from causvid.harness.command_line import run
from causvid.harness.declaration import Metrics, Reads, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.preparation.latents.config import LatentConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class ExtractLatents(Stage):
    """Encode the clips with the VAE on all workers, and write one shard for each clip."""

    HEADLINE = ("{clips} clips", "{resumed} of them already done", "{rejected} rejected")

    clips: Annotated[Path, Reads("folder of clips with a manifest, from the stage resample")]
    vae: Annotated[Path, Reads("folder of the VAE, from the stage train_vae")]
    out: Annotated[Path, Writes("folder of shards")]
    metrics: Annotated[Path, Metrics()]
    video: Annotated[VideoShape, Section("video")]
    precision: Annotated[Precision, Section("model.precision")]
    config: Annotated[LatentConfig, Section("extract_latents")]

    def run(self, stage: StageRun) -> None:
        """Encode the clips whose shards do not exist yet."""
        with importing():
            from causvid.preparation.latents.encoding import LatentEncoder, extract_latents

        encoder = LatentEncoder(
            clips=self.clips.resolve(),
            vae=self.vae.resolve(),
            out=stage.work.resolve() / "out",
            video=self.video,
            precision=self.precision,
        )
        stage.report(extract_latents(encoder, self.config, stage.compute))
        stage.publish(encoder.out, self.out)


main = command(ExtractLatents)

if __name__ == "__main__":
    run("extract_latents", main)
