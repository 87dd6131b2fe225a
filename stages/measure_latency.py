"""The stage ``measure_latency`` and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.compute.precision import Precision
from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.config import LatencyConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Headlines, Metrics, Reads, Section, Stage, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class MeasureLatency(Stage):
    """Measure the time to the first frame and the frames per second of teacher and student in one process."""

    HEADLINE = ("student {student[first_frame_s]:.3f} s to the first frame", "{student[fps]:.0f} frames/s")

    vae: Annotated[Path, Reads("folder of the VAE")]
    teacher: Annotated[Path, Reads("folder of the teacher")]
    student: Annotated[Path, Reads("folder of the student, from the stage train_dmd")]
    prompts: Annotated[Path, Reads("folder of prompt embeddings")]
    metrics: Annotated[Path, Metrics()]
    speeds: Annotated[Path, Headlines("JSON file of the student's two speeds, with five significant digits")]
    seed: Annotated[int, Section("seed")]
    video: Annotated[VideoShape, Section("video")]
    precision: Annotated[Precision, Section("model.precision")]
    schedule: Annotated[ScheduleConfig, Section("schedule")]
    guidance_scale: Annotated[float, Section("sample.guidance_scale")]
    config: Annotated[LatencyConfig, Section("measure_latency")]

    def run(self, stage: StageRun) -> None:
        """Generate one clip several times with each model."""
        with importing():
            from causvid.data.stores.prompt_store import PromptStore
            from causvid.evaluation.latency import SPEEDS, compare
            from causvid.pipeline import load_pipeline
            from causvid.record import FEW, MANY, read_record, values_of
            from causvid.runtime.files import write_json

        embeddings, pipelines = PromptStore(self.prompts), []
        expected = values_of(self.schedule, self.video, embeddings.tokens, self.precision)
        for folder, steps in ((self.teacher, MANY), (self.student, FEW)):
            record = read_record(folder, steps=steps)
            record.require(folder, expected)
            pipelines.append(load_pipeline(folder, self.vae, record, self.schedule))
        results = compare(
            *pipelines,
            text=embeddings(embeddings.evaluation[:1]),
            negative=embeddings([embeddings.negative]),
            video=self.video,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            config=self.config,
        )
        stage.report(results)
        write_json(self.speeds, {name: float(f"{results['student'][name]:.5g}") for name in SPEEDS})


main = command(MeasureLatency)

if __name__ == "__main__":
    run("measure_latency", main)
