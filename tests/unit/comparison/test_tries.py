"""``make tries`` prints the experiments of DVC with changed params and headline numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from causvid.comparison.tries import Try, table, tries
from causvid.params import ROOT

DVC = str(Path(sys.executable).with_name("dvc"))
PIPELINE = """\
stages:
  score:
    cmd: echo '{"velocity":${train.steps},"fps":8}' > summary.json
    params: [train]
    metrics: [summary.json: {cache: false}]
"""
PARAMS = "seed: 1\ntrain:\n  steps: 3\n  rank:\n"


def drawn(found: list[Try]) -> str:
    console = Console(width=120, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(table(found))
    return capture.get()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a committed project with one DVC stage, which has been run."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    run(tmp_path, "git", "init", "--quiet", "--initial-branch", "trunk")
    run(tmp_path, "git", "config", "user.name", "tester")
    run(tmp_path, "git", "config", "user.email", "tester@example.org")
    run(tmp_path, DVC, "repro", "--quiet")
    run(tmp_path, "git", "add", "-A")
    run(tmp_path, "git", "commit", "--quiet", "-m", "all")
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)


def test_the_command_prints_the_workspace_the_commit_and_every_experiment(project: Path) -> None:
    run(project, DVC, "exp", "run", "--name", "longer", "-S", "train.steps=5", "-S", "train.rank=8")
    lines = run(project, sys.executable, "-m", "causvid.comparison.tries").stdout.splitlines()
    assert all(len(line) <= 120 for line in lines)
    (workspace,), (commit,), (longer,) = (
        [line for line in lines if name in line] for name in ("work", "trunk", "long")
    )
    assert ("3.000" in commit, "=" in commit) == (True, False)
    for same in (workspace, longer):  # 'dvc exp run' leaves the results of the experiment in the workspace
        assert ("5.000" in same, "8.0" in same, "=" in same) == (True, True, True)
    assert sum("steps=5" in line for line in lines) == sum("rank=8" in line for line in lines) == 2


def test_params_that_differ_from_the_commit_are_changed() -> None:
    """Metrics and dependencies of a stage are no params, even if their values differ."""
    base = {
        "Experiment": None,
        "rev": "main",
        "typ": "baseline",
        "train.steps": 3.0,
        "train.rank": None,
        "sample.steps": 2.0,
        "velocity": 0.5,
    }
    other = {**base, "Experiment": "late-gnat", "rev": "0a1b2c3", "typ": "branch_base", "train.steps": 0.25}
    other |= {"params.yaml:train.rank": 8.0, "velocity": 0.75, "data/clips": "c0ffee"}
    assert tries([base, other], ["train", "sample"]) == [
        Try(name="main", changed={}, numbers={"velocity": 0.5}),
        Try(name="late-gnat", changed={"train.steps": "0.25", "rank": "8"}, numbers={"velocity": 0.75}),
    ]


def test_the_best_of_different_numbers_is_bold_and_a_missing_number_is_not_measured() -> None:
    one = Try(name="one", changed={}, numbers={"velocity": 0.5, "frechet": 1.25, "fps": 8.0})
    two = Try(name="two", changed={}, numbers={"velocity": 0.75, "frechet": 2.5, "fps": 8.0})
    text = drawn([one, two])
    bold = [number for run in re.findall(r"\x1b\[1m([^\x1b]*)\x1b", text) for number in run.split()]
    assert bold == ["1.25", "0.750"]  # a smaller distance is better, and the speeds are equal
    assert text.count("measured") == 10


def test_a_folder_without_a_commit_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "causvid.comparison.tries"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("DVC cannot list the experiments: ")
    assert "Traceback" not in done.stderr
