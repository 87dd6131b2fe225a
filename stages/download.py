"""Stage download: videos and captions from the toy world, a folder of yours or MixKit, into data/raw."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from causvid.data.sources import local as sources
from causvid.harness.stage import stage_run
from causvid.runtime.shapes import VideoShape

READS = ("seed", "video", "download")


def main(
    out: Annotated[Path, typer.Option()],
    metrics: Annotated[Path, typer.Option()],
    params: Annotated[Path, typer.Option()] = Path("params.yaml"),
) -> None:
    """Options are paths of the pipeline; numbers and the user's paths come from the params file."""
    with stage_run("download", params=params, reads=READS, inputs=(), metrics=metrics) as run:
        video = run.section("video", VideoShape)
        config = run.section("download", sources.DownloadConfig)
        built, hub = run.work / "out", run.work / "hub"
        shutil.rmtree(built, ignore_errors=True)
        if config.source == "toy_world":
            seed = run.section("seed", int)
            counts = sources.toy_world_videos(built, config, video=video, seed=seed, workers=run.compute.workers)
        elif config.source == "folder":
            counts = sources.folder_videos(built, config)
        else:
            from causvid.data.sources.mixkit import mixkit_videos  # the hub's client takes a second to import

            counts = mixkit_videos(built, config, hub=hub)
        run.publish(built, out)
        run.report({"source": config.source, **counts})
        shutil.rmtree(hub, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
