"""The stage ``evaluate`` and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.evaluation.config import EvaluateConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Item, Metrics, Reads, Section, Stage, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.runtime.shapes import VideoShape, block_frames


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Compute the scores of videos: judge of the toy world, Frechet distance, flicker, drift and VBench."""

    HEADLINE = ("velocity {judge[velocity]:.3f}", "Fréchet distance {frechet_distance:.2f}")

    videos: Annotated[Path, Reads("folder of videos with a manifest")]
    item: Annotated[str, Item("name of the folder in the reports")]
    reference: Annotated[Path, Reads("folder of real clips, for the Frechet distance")]
    metrics: Annotated[Path, Metrics()]
    video: Annotated[VideoShape, Section("video")]
    frames_per_block: Annotated[int | None, Section("model.frames_per_block")]
    temporal_stride: Annotated[int, Section("model.vae.scale_factor_temporal")]
    source: Annotated[str, Section("download.source")]
    count: Annotated[int, Section("sample.videos")]
    crf: Annotated[int, Section("sample.crf")]
    config: Annotated[EvaluateConfig, Section("evaluate")]

    def run(self, stage: StageRun) -> None:
        """Score the first ``sample.videos`` videos of the folder."""
        with importing():
            from causvid.compute import device
            from causvid.evaluation import scores, vbench
            from causvid.evaluation.features import FeatureNet

        setting = scores.Setting(
            reference=self.reference,
            toy_world=self.source == "toy_world",
            video=self.video,
            blocks=block_frames(
                self.video, temporal_stride=self.temporal_stride, frames_per_block=self.frames_per_block
            ),
            count=self.count,
            crf=self.crf,
        )
        rows, log = scores.select(self.videos, setting).rows, stage.work / "vbench.log"
        with vbench.scoring(self.videos, rows, self.config, device=str(device.pick()), log=log) as vbenched:
            stage.report(scores.score(self.videos, FeatureNet(self.config.feature_vae), setting))
            stage.report({"vbench": vbenched()})


main = command(Evaluate)

if __name__ == "__main__":
    run("evaluate", main)
