"""The stage ``download`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.data.sources.config import DownloadConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Metrics, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class Download(Stage):
    """Collect videos and captions from the toy world, from a folder or from MixKit."""

    HEADLINE = ("{videos} videos",)

    out: Annotated[Path, Writes("folder of videos with a manifest")]
    metrics: Annotated[Path, Metrics()]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    config: Annotated[DownloadConfig, Section("download")]

    def run(self, stage: StageRun) -> None:
        """Write the videos of the source that params.yaml names."""
        with importing():
            from causvid.data.sources import local as sources

        built, hub = stage.work / "out", stage.work / "hub"
        shutil.rmtree(built, ignore_errors=True)
        if self.config.source == "toy_world":
            workers = stage.compute.workers
            counts = sources.toy_world_videos(built, self.config, video=self.video, seed=self.seed, workers=workers)
        elif self.config.source == "folder":
            counts = sources.folder_videos(built, self.config)
        else:
            from causvid.data.sources.mixkit import mixkit_videos  # a slow import: the client of the hub takes a second

            counts = mixkit_videos(built, self.config, hub=hub)
        stage.publish(built, self.out)
        stage.report({"source": self.config.source, **counts})
        shutil.rmtree(hub, ignore_errors=True)


main = command(Download)

if __name__ == "__main__":
    run("download", main)
