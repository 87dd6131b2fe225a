"""DVC experiments that run in a copy of the project use the MLflow store and the work folders of the project."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causvid.data.sources.toy_world import clip_frames
from causvid.data.videos.video_writer import write_video
from causvid.runtime.shapes import VideoShape
from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline

VBENCH = """#!/bin/sh
# Stand-in for VBench's interpreter, which is called as: python -P RUNNER OUT
echo '{"version": "stand-in", "scores": {"temporal_flickering": 0.5}, "skipped": {}}' > "$3"
"""
CAPTION = "a red circle moves right over a black background"
IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")


@pytest.fixture(scope="module")
def project(make_clone: Callable[[str], Clone]) -> Clone:
    """Return a committed project whose VBench environment, videos and captions are not tracked by git."""
    clone = make_clone("experiments")
    python = clone.root / ".venvs" / "vbench" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(VBENCH)
    python.chmod(0o755)
    clone.set(download__source="folder", download__folder="mine", download__captions="captions.json")
    with (clone.root / ".gitignore").open("a") as file:
        file.write("/mine/\n/captions.json\n")
    video = VideoShape(height=32, width=32, frames=21, fps=8)
    (clone.root / "mine").mkdir()
    for index in range(3):
        frames = clip_frames(CAPTION, index, video=video, seed=0)
        write_video(clone.root / "mine" / f"{index}.mp4", frames, fps=8, crf=10)
    (clone.root / "captions.json").write_text(json.dumps({f"{index}.mp4": CAPTION for index in range(3)}))
    clone.run("git", "add", "-A")
    clone.run("git", *IDENTITY, "commit", "--quiet", "-m", "all")
    return clone


def runs(root: Path) -> dict[str, int]:
    """Return the number of MLflow runs of the project, by name."""
    with sqlite3.connect(root / "mlflow.db") as db:
        return dict(db.execute("select name, count(*) from runs group by name").fetchall())


def refs(clone: Clone) -> list[str]:
    """Return the names of git's references to experiments."""
    return clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()


def committed(clone: Clone, ref: str, report: str) -> dict[str, Any]:
    """Return a report of an experiment, as 'dvc exp apply' would restore the report."""
    content: dict[str, Any] = json.loads(clone.run("git", "show", f"{ref}:reports/{report}.json").stdout)
    return content


@pytest.mark.parametrize(
    "commands",
    [
        [("dvc", "exp", "run", "--temp", "--name", "temp", "-S", "sample.videos=2", "evaluate@clips")],
        [
            ("dvc", "exp", "run", "--queue", "--name", "first", "-S", "sample.videos=3", "evaluate@clips"),
            ("dvc", "exp", "run", "--queue", "--name", "second", "-S", "sample.crf=12", "evaluate@clips"),
            ("dvc", "exp", "run", "--run-all"),
        ],
    ],
    ids=["temp", "queue"],
)
def test_an_experiment_logs_to_the_project_and_finds_untracked_inputs(
    project: Clone, commands: list[tuple[str, ...]]
) -> None:
    before = runs(project.root).get("evaluate@clips", 0) if (project.root / "mlflow.db").is_file() else 0
    for command in commands:
        project.run(*command)
    names = [command[command.index("--name") + 1] for command in commands if "--name" in command]
    assert runs(project.root)["evaluate@clips"] == before + len(names)
    for name in names:
        (ref,) = (ref for ref in refs(project) if ref.endswith(f"/{name}"))
        assert committed(project, ref, "evaluate/clips")["vbench"]["scores"] == {"temporal_flickering": 0.5}
        assert committed(project, ref, "resample/metrics")["kept"] == 3
    assert not (project.root / ".dvc" / "tmp" / "exps" / "mlflow.db").exists()
    assert (project.root / ".work" / "evaluate").is_dir()
