"""Stage report: one page with ours beside the paper's, samples side by side, curves and speed."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.stage import stage_run
from causvid.reporting import page, tables
from causvid.runtime.files import write_text
from causvid.runtime.shapes import VideoShape

READS = ("profile", "video", "schedule", "report")


def main(
    reports: Path = typer.Option(...),
    samples: Path = typer.Option(...),
    published: Path = typer.Option(...),
    out: Path = typer.Option(...),
    markdown: Path = typer.Option(...),
    figures: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    read = [reports / name for name in (*tables.SINGLE, "evaluate", "ablate")]
    with stage_run("report", params=params, reads=READS, inputs=[samples, published, *read], metrics=metrics) as run:
        content = page.collect(
            reports,
            samples,
            published,
            profile=run.section("profile", str),
            video=run.section("video", VideoShape),
            schedule=run.section("schedule", ScheduleConfig),
            rows=run.section("report", page.ReportConfig).rows,
        )
        built = run.work / "out"
        shutil.rmtree(built, ignore_errors=True)
        drawn = page.draw(content, built / "figures")
        write_text(built / "index.html", page.html(content, built / "figures"))
        write_text(built / "report.md", page.markdown(content, figures.name, drawn))
        run.report({"videos": content.videos_shown, "prompts": len(content.samples), "tables": len(content.tables())})
        for path in (built / "index.html", *(built / "figures" / name for name in drawn)):
            run.tracker.log_artifact(path, "report")
        run.publish(built / "figures", figures)
        run.publish(built / "report.md", markdown)
        run.publish(built / "index.html", out)


if __name__ == "__main__":
    typer.run(main)
