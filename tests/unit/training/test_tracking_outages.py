"""A trained student has the same weights if MLflow's store fails during the training as without a failure."""

from __future__ import annotations

import csv
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from causvid.harness import tracking
from causvid.harness.delivery import TOKEN
from causvid.harness.mlflow_store import client
from causvid.harness.tracking import Made, Tracker, child_run
from causvid.training.trainer import CURVE, EXPORT, read_last
from tests.unit.harness.mlflow_server import free_port, kill, start, wait_for

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated"),
    pytest.mark.timeout(3600),
]

Gate = Callable[[int], None]
FAST, SLOW = 12, 200  # numbers of training steps


@dataclass(frozen=True)
class Paced:
    """A tracker that calls ``gate`` before each row of the curve. ``gate`` may wait, and changes no number."""

    tracker: Tracker
    gate: Gate

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        self.gate(step)
        self.tracker.log_metrics(metrics, step)


@dataclass(frozen=True)
class Trained:
    """The results of a training: the bytes of its files, the columns of its curve, and its tracker."""

    files: dict[str, bytes]
    curve: dict[str, list[tuple[int, float]]]
    tracker: Tracker


@pytest.fixture
def store(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the database file of an MLflow store in a separate folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(tracking.__file__).parents[2]))
    monkeypatch.delenv(tracking.PARENT_VARIABLE, raising=False)
    path = tmp_path / "mounted" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(migrated_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


def train(kinds: dict[str, Any], root: Path, steps: int, gate: Gate = lambda _: None) -> Trained:
    """Train a student in the project ``root`` in the same way as the stage train_dmd."""
    work = root / ".work" / "train_dmd" / "k"
    with child_run(
        "train_dmd", "smoke", root, {"steps": steps}, Made(key="k", inputs={}, upstream={}), work
    ) as tracker:
        run = kinds["dmd"].new_run(work, steps=steps, checkpoint_every=steps)
        kinds["dmd"].train(replace(run, tracker=Paced(tracker, gate)))
        tracker.log_results({**read_last(work / CURVE), "steps": steps})
    files = {path.name: path.read_bytes() for path in [work / CURVE, *(work / EXPORT).iterdir()]}
    with (work / CURVE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in rows[0] if name != "step"
    }
    return Trained(files, columns, tracker)


def send(root: Path) -> None:
    """Send all unsent records to MLflow, like ``make send``."""
    command = [sys.executable, "-m", "causvid.harness.outbox"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def assert_whole(store: Path, trained: Trained) -> int:
    """Check that MLflow has each point of the curve exactly once, and return the number of rows in MLflow."""
    api = client(f"sqlite:///{store}")
    everywhere = [experiment.experiment_id for experiment in api.search_experiments()]
    (run,) = api.search_runs(everywhere, f"tags.{TOKEN} = '{trained.tracker.journal.folder.name}'")
    history = {
        name: [(m.step, m.value) for m in api.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    assert {name: sorted(history[name]) for name in trained.curve} == trained.curve
    for name, points in history.items():
        steps = [step for step, _ in points]
        assert len(steps) == len(set(steps)), name
    assert history["steps"] == [(0, run.data.metrics["steps"])]
    assert run.info.status == "FINISHED"
    return sum(len(points) for points in history.values())


class Locked:
    """Lock the database from another thread for ``seconds`` seconds after the first third of the training."""

    def __init__(self, store: Path, steps: int, seconds: float) -> None:
        self.store, self.steps, self.seconds = store, steps, seconds
        self.released, self.holder = threading.Event(), threading.Thread(target=self.hold)
        self.held = threading.Event()

    def hold(self) -> None:
        with closing(sqlite3.connect(self.store, isolation_level=None, timeout=60)) as other:
            other.execute("begin exclusive")
            self.held.set()
            time.sleep(self.seconds)
            other.execute("rollback")
        self.released.set()

    def __call__(self, step: int) -> None:
        if step >= self.steps // 3 and not self.holder.ident:
            self.holder.start()
            self.held.wait()
        if step >= 2 * self.steps // 3:
            self.released.wait()


@pytest.mark.parametrize(
    ("steps", "seconds"), [(FAST, 8.0), pytest.param(SLOW, 60.0, marks=pytest.mark.slow)], ids=["fast", "slow"]
)
def test_the_store_is_locked_during_training(
    steps: int, seconds: float, store: Path, kinds: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed = train(kinds, tmp_path / "a", steps)
    locked = train(kinds, tmp_path / "b", steps, gate := Locked(store, steps, seconds))
    gate.holder.join()
    assert locked.files == undisturbed.files
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("MLflow")]
    assert len(said) <= 1
    send(tmp_path / "b")
    print(f"{assert_whole(store, locked)} rows, {assert_whole(store, undisturbed)} undisturbed")


@pytest.mark.parametrize("when", ["start", "end"])
@pytest.mark.parametrize("steps", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_the_store_is_missing_during_training(
    steps: int, when: str, store: Path, kinds: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """During the first or the second half of the training, a file replaces the folder of the store."""
    undisturbed = train(kinds, tmp_path / "a", steps)
    folder, away = store.parent, tmp_path / "away"

    def go() -> None:
        folder.rename(away)
        folder.touch()

    def come() -> None:
        folder.unlink()
        away.rename(folder)

    def gate(step: int) -> None:
        if (folder.is_file() if when == "start" else folder.is_dir()) and step >= steps // 2:
            (come if when == "start" else go)()

    if when == "start":
        go()
    disturbed = train(kinds, tmp_path / "b", steps, gate)
    if when == "end":
        come()
    assert disturbed.files == undisturbed.files
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("MLflow")]
    assert len(said) <= 1
    assert said or when == "start", "stderr must mention the records that were not sent"
    send(tmp_path / "b")
    print(f"{assert_whole(store, disturbed)} rows, {assert_whole(store, undisturbed)} undisturbed")


class Restarted:
    """Kill and restart an MLflow server at random moments during the training."""

    def __init__(self, store: Path, steps: int, kills: int) -> None:
        self.uri, self.steps, self.kills = f"sqlite:///{store}", steps, kills
        self.port, self.dice, self.done = free_port(), random.Random(0), 0
        self.server: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self.flap)

    def flap(self) -> None:
        for _ in range(self.kills):
            self.server = start(self.uri, self.port)
            wait_for(self.server, self.port)
            time.sleep(self.dice.uniform(0, 3))
            kill(self.server)
            self.done += 1
            time.sleep(self.dice.uniform(0, 3))
        self.server = start(self.uri, self.port)
        wait_for(self.server, self.port)

    def __call__(self, step: int) -> None:
        while self.done * self.steps < step * self.kills:
            time.sleep(0.05)


@pytest.mark.slow
def test_the_server_is_killed_20_times_during_training(
    store: Path,
    kinds: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    undisturbed = train(kinds, tmp_path / "a", SLOW)
    gate = Restarted(store, SLOW, 20)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{gate.port}")
    gate.thread.start()
    try:
        disturbed = train(kinds, tmp_path / "b", SLOW, gate)
        gate.thread.join()
        send(tmp_path / "b")
    finally:
        assert gate.server
        kill(gate.server)
    assert gate.done == 20
    assert disturbed.files == undisturbed.files
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("MLflow")]
    assert len(said) <= 1
    print(f"{assert_whole(store, disturbed)} rows, {assert_whole(store, undisturbed)} undisturbed, 20 kills")
