"""The stage ``report`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.command_line import run
from causvid.harness.declaration import Headlines, Metrics, Reads, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.reporting import tables
from causvid.reporting.config import ReportConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class Report(Stage):
    """Write a page with the results of this run and of the paper, sample videos, curves and latency."""

    HEADLINE = ("{videos} videos", "{tables} tables")

    reports: Annotated[
        Path, Reads("folder of the stages' metrics and curves", entries=(*tables.SINGLE, "evaluate", "ablate"))
    ]
    samples: Annotated[Path, Reads("folder of the models' videos")]
    published: Annotated[Path, Reads("YAML file of the paper's results")]
    out: Annotated[Path, Writes("HTML page of the report")]
    markdown: Annotated[Path, Writes("the same page as Markdown")]
    figures: Annotated[Path, Writes("folder of the page's figures")]
    metrics: Annotated[Path, Metrics()]
    summary: Annotated[Path, Headlines("JSON file of the headline scores")]
    profile: Annotated[str, Section("profile")]
    video: Annotated[VideoShape, Section("video")]
    schedule: Annotated[ScheduleConfig, Section("schedule")]
    config: Annotated[ReportConfig, Section("report")]

    def run(self, stage: StageRun) -> None:
        """Write the page in both formats."""
        with importing():
            from causvid.reporting import closing, page, summary
            from causvid.reporting import content as contents
            from causvid.runtime.files import write_json, write_text

        content = contents.collect(
            *(self.reports, self.samples, self.published),
            profile=self.profile,
            video=self.video,
            schedule=self.schedule,
            rows=self.config.rows,
        )
        built = stage.work / "out"
        shutil.rmtree(built, ignore_errors=True)
        drawn = page.draw(content, built / "figures")
        write_text(built / "index.html", page.html(content, built / "figures", drawn))
        write_text(built / "report.md", page.markdown(content, self.figures.name, drawn))
        write_json(self.summary, summary.rounded(content.results, summary.SCORES))
        stage.report({"videos": content.videos_shown, "prompts": len(content.samples), "tables": content.tables_shown})
        for path in (built / "index.html", *(built / "figures" / name for name in drawn.names)):
            stage.tracker.log_artifact(path, "report")
        numbers = summary.rounded(content.results)
        stage.tracker.log_headline(numbers, content.introduction, content.excerpt)
        stage.publish(built / "figures", self.figures)
        stage.publish(built / "report.md", self.markdown)
        stage.publish(built / "index.html", self.out)
        closing.say(self.reports, self.out, self.profile)


main = command(Report)

if __name__ == "__main__":
    run("report", main)
