"""Score a folder of videos: analytic judge of the toy world, Frechet distance, flicker, drift, VBench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causvid.data.manifest import read_manifest
from causvid.evaluation import drift, judge, quality, vbench
from causvid.runtime import device
from causvid.runtime.stage import stage_run

READS = ("download.source", "sample.videos", "evaluate")
LOCK = Path("requirements/vbench.txt")


def main(
    videos: Annotated[Path, typer.Option(help="folder of videos with a manifest")],
    item: Annotated[str, typer.Option(help="name of the folder in the reports")],
    reference: Annotated[Path, typer.Option(help="real clips to compare with")],
    metrics: Annotated[Path, typer.Option(help="JSON file to write")],
    params: Annotated[Path, typer.Option(help="params file")] = Path("params.yaml"),
) -> None:
    """Score the first videos of a folder, as many as there are evaluation samples."""
    inputs = [videos, reference, LOCK]
    with stage_run("evaluate", params=params, reads=READS, inputs=inputs, metrics=metrics, item=item) as run:
        config, limit = run.section("evaluate", vbench.EvaluateConfig), run.section("sample.videos", int)
        clips = read_manifest(reference)
        shown, reserved = quality.halves(clips, limit)
        rows = shown if videos == reference else read_manifest(videos)[:limit]
        measured = quality.measure_folder(videos, rows)
        real = quality.measure_folder(reference, reserved[: len(rows)])
        toy_world = run.section("download.source", str) == "toy_world"
        run.report(
            {
                "n": len(rows),
                "judge": judge.judge_folder(videos, rows) if toy_world else None,
                "frechet_distance": quality.frechet_distance(measured.features, real.features),
                "flicker": measured.flicker,
                "drift": drift.drift(videos, clips[0]["frames"]),
                "vbench": vbench.score(videos, rows, config, device=str(device.pick()), log=run.work / "vbench.log"),
            }
        )


if __name__ == "__main__":
    typer.run(main)
