"""Stage resample: every raw video into a clip of exactly the run's size, rate and length, or a row saying why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from causvid.data.resampling.clips import ResampleConfig, resample_folder
from causvid.harness.stage import stage_run
from causvid.runtime.shapes import VideoShape

READS = ("video", "resample")


def main(
    raw: Annotated[Path, typer.Option()],
    out: Annotated[Path, typer.Option()],
    metrics: Annotated[Path, typer.Option()],
    params: Annotated[Path, typer.Option()] = Path("params.yaml"),
) -> None:
    """Options are paths; numbers come from the params file."""
    with stage_run("resample", params=params, reads=READS, inputs=(raw,), metrics=metrics) as run:
        built = run.work / "out"
        shutil.rmtree(built, ignore_errors=True)
        counts = resample_folder(
            raw.resolve(),
            built.resolve(),
            video=run.section("video", VideoShape),
            config=run.section("resample", ResampleConfig),
            compute=run.compute,
        )
        run.publish(built, out)
        run.report(counts)


if __name__ == "__main__":
    typer.run(main)
