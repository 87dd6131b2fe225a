"""The stage ``resample`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.data.resampling.config import ResampleConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Metrics, Reads, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class Resample(Stage):
    """Convert every video to a clip of ``video``'s size, rate and frames, or record why the video is rejected."""

    HEADLINE = ("{kept} clips", "{rejected} rejected")

    raw: Annotated[Path, Reads("folder of videos with a manifest, from the stage download")]
    out: Annotated[Path, Writes("folder of clips with a manifest")]
    metrics: Annotated[Path, Metrics()]
    video: Annotated[VideoShape, Section("video")]
    config: Annotated[ResampleConfig, Section("resample")]

    def run(self, stage: StageRun) -> None:
        """Resample the videos on all workers."""
        with importing():
            from causvid.data.resampling.clips import resample_folder

        built = stage.work / "out"
        shutil.rmtree(built, ignore_errors=True)
        counts = resample_folder(
            self.raw.resolve(), built.resolve(), video=self.video, config=self.config, compute=stage.compute
        )
        stage.publish(built, self.out)
        stage.report(counts)


main = command(Resample)

if __name__ == "__main__":
    run("resample", main)
