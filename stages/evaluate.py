"""Score a folder of videos: analytic judge of the toy world, Frechet distance, flicker, drift, VBench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causvid.compute import device
from causvid.evaluation import scores, vbench
from causvid.evaluation.features import FeatureNet
from causvid.harness.stage import stage_run
from causvid.runtime.shapes import VideoShape, block_frames

READS = (
    "video",
    "model.frames_per_block",
    "model.vae.scale_factor_temporal",
    "download.source",
    "sample.videos",
    "sample.crf",
    "evaluate",
)


def main(
    videos: Annotated[Path, typer.Option(help="folder of videos with a manifest")],
    item: Annotated[str, typer.Option(help="name of the folder in the reports")],
    reference: Annotated[Path, typer.Option(help="real clips to compare with")],
    metrics: Annotated[Path, typer.Option(help="JSON file to write")],
    params: Annotated[Path, typer.Option(help="params file")] = Path("params.yaml"),
) -> None:
    """Score the first videos of a folder, as many as there are evaluation samples."""
    inputs = (videos, reference)
    with stage_run("evaluate", params=params, reads=READS, inputs=inputs, metrics=metrics, item=item) as run:
        config, video = run.section("evaluate", vbench.EvaluateConfig), run.section("video", VideoShape)
        setting = scores.Setting(
            reference=reference,
            toy_world=run.section("download.source", str) == "toy_world",
            video=video,
            blocks=block_frames(
                video,
                temporal_stride=run.section("model.vae.scale_factor_temporal", int),
                frames_per_block=run.section("model.frames_per_block", int | None),  # type: ignore[arg-type]  # a union is no type[T]
            ),
            count=run.section("sample.videos", int),
            crf=run.section("sample.crf", int),
        )
        rows, log = scores.select(videos, setting).rows, run.work / "vbench.log"
        with vbench.scoring(videos, rows, config, device=str(device.pick()), log=log) as vbenched:
            run.report(scores.score(videos, FeatureNet(config.feature_vae), setting))
            run.report({"vbench": vbenched()})


if __name__ == "__main__":
    typer.run(main)
