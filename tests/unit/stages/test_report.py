"""The stage report writes the page, the Markdown and the figures from the files of a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from causvid import params
from causvid.data.videos import manifest
from causvid.data.videos.video_writer import write_video
from causvid.harness import tracking
from causvid.reporting import tables
from stages import report

OUTS = {"out": "reports/index.html", "markdown": "reports/report.md", "figures": "reports/figures"}


def run(*extra: str) -> tuple[int, str]:
    """Run the stage in the current folder, as dvc.yaml does."""
    app = typer.Typer()
    app.command()(report.main)
    options = {"reports": "reports", "samples": "data/samples", "published": "published.yaml", **OUTS}
    options |= {"metrics": "reports/report/metrics.json", "summary": "reports/summary.json", "params": "params.yaml"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = CliRunner().invoke(app, [*arguments, *extra])
    return result.exit_code, str(result.exception)


@pytest.fixture
def kept() -> list[tuple[str, str]]:
    """Return the list of artifacts that the stage logs, as pairs of folder and name."""
    return []


@pytest.fixture
def headlines() -> list[tuple[dict[str, float], str, list[Path]]]:
    """Return a list to which the stage adds its headline numbers, its text and its videos."""
    return []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[tuple[str, str]], headlines: list[Any]) -> Path:
    """Return a project with params and published numbers only, in which tracking is disabled."""

    @contextmanager
    def no_tracking(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(
            log_results=lambda _: None,
            log_metrics=lambda _: None,
            log_artifact=lambda path, folder: kept.append((folder, path.name)),
            log_headline=lambda *values: headlines.append(values),
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "child_run", no_tracking)
    params.use("laptop", tmp_path / "params.yaml")
    (tmp_path / "published.yaml").write_text((params.ROOT / "data/inputs/published.yaml").read_text())
    (tmp_path / "reports").mkdir()
    for code in ("stages", "causvid"):  # the key of the work folder is computed from the source code, too
        (tmp_path / code).symlink_to(params.ROOT / code)
    return tmp_path


def test_all_files_are_published_and_metrics_count_them(project: Path, kept: list[tuple[str, str]]) -> None:
    """The page shows the numbers of the finished stage, and "not measured" for others.

    A second run replaces the page.
    """
    speed = {"first_frame_s": 0.5, "fps": 10.0, "passes": 4}
    latency = {"device": "CPU", "student": speed, "ratio": {"first_frame": 8.0, "fps": 2.0}}
    (project / "reports/train_dmd").mkdir()
    (project / "reports/train_dmd/curve.csv").write_text("step,student_loss\n0,1.0\n1,0.5\n")
    (project / "reports/measure_latency").mkdir()
    path = project / "reports/measure_latency/metrics.json"
    path.write_text(json.dumps(latency))
    assert run() == (0, "None")
    assert kept == [("report", "index.html"), ("report", "train_dmd-student_loss.svg")]
    page = (project / OUTS["out"]).read_text()
    assert "8.0 times sooner" in page
    assert "not measured" in page
    assert "](figures/train_dmd-student_loss.svg)" in (project / OUTS["markdown"]).read_text()
    assert [file.name for file in (project / OUTS["figures"]).iterdir()] == ["train_dmd-student_loss.svg"]
    metrics = json.loads((project / "reports/report/metrics.json").read_text())
    assert (metrics["videos"], metrics["prompts"]) == (0, 0)
    assert metrics["tables"] >= 4
    assert metrics["key"]
    path.write_text(json.dumps({**latency, "ratio": {"first_frame": 9.0, "fps": 2.0}}))
    assert run() == (0, "None")
    assert "9.0 times sooner" in (project / OUTS["out"]).read_text()
    assert json.loads((project / "reports/report/metrics.json").read_text())["key"] != metrics["key"]


def test_the_headline_has_the_numbers_that_were_measured_and_videos_of_teacher_and_student(
    project: Path, headlines: list[tuple[dict[str, float], str, list[Path]]]
) -> None:
    teacher = {"first_frame_s": 1.0, "fps": 9.0, "seconds": 1.0, "passes": 9, "ready_s": [1.0], "frames": [9]}
    student = {"first_frame_s": 0.1254, "fps": 85.0, "seconds": 0.5, "passes": 4, "ready_s": [0.125], "frames": [9]}
    latency = {"teacher": teacher, "student": student, "ratio": {"first_frame": 8.0, "fps": 2.0}}
    (project / "reports/measure_latency").mkdir()
    (project / "reports/measure_latency/metrics.json").write_text(json.dumps(latency))
    for model in ("reconstruction", *tables.MODELS):
        folder = project / "data/samples" / model
        rows = [{"id": f"{index}", "path": f"{index}.mp4", "caption": f"caption {index}"} for index in range(5)]
        folder.mkdir(parents=True)
        manifest.write_rows(folder / manifest.NAME, rows)
        for row in rows:
            write_video(folder / row["path"], np.zeros((9, 32, 32, 3), np.uint8), fps=8, crf=10)
    assert run() == (0, "None")
    ((numbers, text, videos),) = headlines
    assert numbers == {"first_frame_s": 0.125, "fps": 85.0}
    assert "8.0 times sooner" in text
    assert text.endswith("\n\n- sample 0: caption 0\n- sample 1: caption 1\n- sample 2: caption 2")
    assert [path.as_posix() for path in videos] == [
        f"data/samples/{model}/{index}.mp4" for model in ("teacher", "dmd") for index in range(3)
    ]


def test_the_summary_has_the_headline_scores_that_were_measured(project: Path) -> None:
    """Other metrics and the key of the work are not in the summary, which is a metrics file of DVC."""
    (project / "reports/evaluate").mkdir()
    scores = {"judge": {"velocity": 0.75, "motion": 0.5, "shape": 1.0}, "frechet_distance": 2.5678912, "flicker": 0.1}
    (project / "reports/evaluate/dmd.json").write_text(json.dumps({**scores, "key": "0123"}))
    assert run() == (0, "None")
    found = json.loads((project / "reports/summary.json").read_text())
    assert found == {"velocity": 0.75, "motion": 0.5, "frechet": 2.57}


def test_an_invalid_file_of_published_numbers_is_one_sentence(project: Path) -> None:
    """The error message names the file and the field, and the stage publishes nothing."""
    (project / "published.yaml").write_text("sources: {}\nlatency: []\nquality: []\n")
    code, message = run()
    assert code == 1
    assert "published.yaml.vbench" in message
    assert not (project / OUTS["out"]).exists()
