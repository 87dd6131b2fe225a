"""A stage continues if MLflow's store is absent, locked, full or of another version, and no record is lost."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from causvid.harness import outbox, parents, sender, tracking
from causvid.harness.delivery import TOKEN, Delivery
from causvid.harness.journal import Journal, journals
from causvid.harness.mlflow_store import client
from causvid.harness.tracking import Made, Tracker, child_run, end_parent, start_parent
from tests.unit.harness.mlflow_server import free_port, kill, start, wait_for

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")

MADE = Made(key="k", inputs={"data/x": "0" * 32}, upstream={})
STEPS = 4


@pytest.fixture
def project(tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the root of a project in which the stages run without dvc, and MLflow does not retry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parents, "dvc_above", lambda: None)
    for name, value in sender.QUIET.items():
        monkeypatch.setenv(name, value)
    logging.disable(logging.CRITICAL)
    yield tmp_path
    logging.disable(logging.NOTSET)


def stage(root: Path, name: str = "train_dmd", steps: range = range(STEPS)) -> Tracker:
    """Run a stage that logs a curve, an artifact, a model and results."""
    work = root / ".work" / name / "k"
    with child_run(name, "smoke", root, {"seed": 0, "prompt": "x" * 6000}, MADE, work) as tracker:
        for step in steps:
            tracker.log_metrics({"loss": 1 / (step + 1), "speed/steps": 2.0}, step)
        (root / "step.mp4").write_bytes(b"video")
        tracker.log_artifact(root / "step.mp4", "previews")
        tracker.log_model("dmd", Path("data/checkpoints/dmd"), "k")
        tracker.log_results({"loss": 1 / STEPS, "steps": STEPS})
    return tracker


def run_of(uri: str, tracker: Tracker) -> Any:
    """Return the only run of a tracker."""
    api = client(uri)
    everywhere = [experiment.experiment_id for experiment in api.search_experiments()]
    (run,) = api.search_runs(everywhere, f"tags.{TOKEN} = '{tracker.journal.folder.name}'")
    return run


def curve(uri: str, tracker: Tracker, name: str = "loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client(uri).get_metric_history(run_of(uri, tracker).info.run_id, name)]


def assert_complete(uri: str, tracker: Tracker) -> None:
    """Assert that MLflow has each record of ``stage`` exactly once."""
    api, run = client(uri), run_of(uri, tracker)
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "0")
    assert curve(uri, tracker) == [(step, 1 / (step + 1)) for step in range(STEPS)]
    assert len(api.get_metric_history(run.info.run_id, "steps")) == 1
    assert [it.dataset.name for it in run.inputs.dataset_inputs] == ["data/x"]
    assert [it.path for it in api.list_artifacts(run.info.run_id, "previews")] == ["previews/step.mp4"]
    models = api.search_logged_models([run.info.experiment_id])
    assert [it.name for it in models if it.source_run_id == run.info.run_id] == ["dmd"]
    assert not tracker.journal.exists


def one_line(said: str) -> str:
    (line,) = said.splitlines()
    assert line.startswith("MLflow cannot accept the records of train_dmd now (")
    assert line.endswith("the next stage sends them, or this command: python -m causvid.harness.outbox")
    return line


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the database in another connection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        yield
        other.execute("rollback")


@contextmanager
def content(path: Path, other: bytes) -> Iterator[None]:
    """Replace the content of the file ``path`` inside the context."""
    original = path.read_bytes()
    path.write_bytes(other)
    os.utime(path, (0, 0))
    try:
        yield
    finally:
        path.write_bytes(original)


@contextmanager
def absent(path: Path) -> Iterator[None]:
    """Replace the folder of the store by a file, as if its file system were not mounted."""
    folder, away = path.parent, path.parent.with_name("away")
    folder.rename(away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


@contextmanager
def on_connect(statement: str) -> Iterator[None]:
    """Execute ``statement`` at the start of each connection to the database."""

    def execute(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(statement)

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", execute)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", execute)


@contextmanager
def full(path: Path) -> Iterator[None]:
    """Prevent the database file from growing."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("vacuum")
    with on_connect("pragma max_page_count = 1"):
        yield


@contextmanager
def version(path: Path, number: str) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as database, database:
        ((before,),) = database.execute("select version_num from alembic_version").fetchall()
        database.execute("update alembic_version set version_num = ?", (number,))
    os.utime(path, (0, 0))
    yield
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = ?", (before,))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "locked": (locked, "database is locked"),
    "absent": (absent, "Not a directory|File exists"),
    "full": (full, "database or disk is full"),
    "read-only": (lambda _: on_connect("pragma query_only = on"), "attempt to write a readonly database"),
    "newer schema": (lambda path: version(path, "ffffffffffff"), "has schema ffffffffffff"),
    "older schema": (lambda path: version(path, "451aebb31d03"), "has schema 451aebb31d03"),
    "damaged": (lambda path: content(path, b"no database at all " * 100), "file is not a database"),
}


@pytest.fixture
def store(project: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Return the path and the URI of a store in a separate folder."""
    path = project / "mounted" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(migrated_database.read_bytes())
    uri = f"sqlite:///{path}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return path, uri


@pytest.mark.parametrize("name", FAULTS)
def test_a_stage_continues_without_a_store_and_the_next_stage_sends_its_records(
    name: str, project: Path, store: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, uri = store
    fault, reason = FAULTS[name]
    with fault(path):
        first = stage(project)
        said = one_line(capsys.readouterr().err)
        assert re.search(reason, said), said
        assert first.journal.exists
    second = stage(project, "sample")
    assert capsys.readouterr().err == ""
    for tracker in (first, second):
        assert_complete(uri, tracker)
    assert run_of(uri, first).info.start_time < run_of(uri, second).info.start_time


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_middle_of_a_curve_loses_and_duplicates_no_row(
    name: str, project: Path, store: tuple[Path, str]
) -> None:
    """Rows that were sent before the fault are not sent again. The remaining rows are sent later."""
    path, uri = store
    more = {f"grad_norm/layer {layer}": 0.5 for layer in range(100)}
    with child_run("train_dmd", "smoke", project, {}, MADE, project / ".work/train_dmd/k") as tracker:
        deliver = Delivery(tracker.journal, project)
        for step in range(6):
            tracker.log_metrics({"loss": 1 / (step + 1), **more}, step)
            if step == 2:
                deliver()
                assert len(curve(uri, tracker)) == 3
            if step == 4:
                with FAULTS[name][0](path), pytest.raises(Exception, match=FAULTS[name][1]):
                    deliver()
    assert curve(uri, tracker) == [(step, 1 / (step + 1)) for step in range(6)]
    assert [step for step, _ in curve(uri, tracker, "grad_norm/layer 99")] == list(range(6))


@pytest.mark.parametrize("after", ["create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated"])
def test_a_sender_that_dies_before_it_notes_a_sent_record_duplicates_nothing(
    after: str, project: Path, store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    original = getattr(MlflowClient, after)

    def dies(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise SystemExit("killed")

    monkeypatch.setattr(MlflowClient, after, dies)
    with pytest.raises(SystemExit, match="killed"):
        stage(project)
    monkeypatch.setattr(MlflowClient, after, original)
    (left,) = journals(project / ".work/train_dmd/k")
    with suppress(SystemExit):
        outbox.app([], standalone_mode=False)
    assert_complete(store[1], Tracker(journal=left))


def test_an_absent_artifact_store_delays_no_metric(
    project: Path, store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    original = MlflowClient.log_artifact
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_: (project / "nowhere" / "x").touch())
    tracker = stage(project)
    assert "No such file" in one_line(capsys.readouterr().err)
    assert (len(curve(store[1], tracker)), run_of(store[1], tracker).info.status) == (STEPS, "FINISHED")
    monkeypatch.setattr(MlflowClient, "log_artifact", original)
    assert [outcome.reason for outcome in sender.send_waiting(project)] == [None]
    assert_complete(store[1], tracker)


def test_parent_runs_that_began_without_a_store_are_sent_later(
    project: Path, store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is absent during a flow with two stages, the first of which fails."""
    path, uri = store
    with absent(path):
        (project / "params.yaml").write_text("profile: smoke\n")
        flow = start_parent("distill", project, {})
        monkeypatch.setenv(tracking.PARENT_VARIABLE, flow)
        with (
            pytest.raises(ValueError, match="no"),
            child_run("download", "smoke", project, {}, MADE, project / ".work/download/k") as failed,
        ):
            raise ValueError("no")
        finished = stage(project)
        end_parent(flow, "FINISHED", "note", project)
        assert all(outcome.reason for outcome in sender.send_waiting(project))
    assert [outcome.reason for outcome in sender.send_waiting(project)] == [None, None, None]
    parent = run_of(uri, Tracker(journal=Journal(Path(flow))))
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "smoke")
    assert parent.info.start_time <= run_of(uri, failed).info.start_time <= parent.info.end_time
    for tracker, status in ((failed, "FAILED"), (finished, "FINISHED")):
        run = run_of(uri, tracker)
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == (status, parent.info.run_id)
    assert_complete(uri, finished)


def test_a_rank_in_another_process_writes_to_the_same_run(project: Path, store: tuple[Path, str]) -> None:
    """MLflow receives the rows of both processes in the order of their times, also if all rows are sent at the end."""
    work = project / ".work/train_dmd/k"
    with absent(store[0]), child_run("train_dmd", "smoke", project, {}, MADE, work) as tracker:
        code = (
            "import pickle, sys\ntracker = pickle.load(sys.stdin.buffer)\n"
            "for step in range(4):\n    tracker.log_metrics({'loss': 1 / (step + 1)}, step)\n"
        )
        subprocess.run([sys.executable, "-c", code], input=pickle.dumps(tracker), check=True)
        tracker.log_results({"loss": 0.25})
    assert len(list((tracker.journal.folder / "rows").iterdir())) == 2
    sender.send_waiting(project)
    assert curve(store[1], tracker) == [(step, 1 / (step + 1)) for step in range(4)]


@pytest.mark.parametrize("cut", [2, 20, 60])
def test_a_truncated_record_is_ignored(cut: int, project: Path, store: tuple[Path, str]) -> None:
    with child_run("train_dmd", "smoke", project, {}, MADE, project / ".work/train_dmd/k") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.log_metrics({"loss": 0.5}, 1)
        (rows,) = (tracker.journal.folder / "rows").iterdir()
        os.truncate(rows, rows.stat().st_size - cut)
        tracker.log_metrics({"loss": 0.25}, 2)
    assert curve(store[1], tracker) == [(0, 1.0), (2, 0.25)]


def test_the_command_lists_the_records_that_still_wait(
    project: Path, store: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with absent(store[0]):
        stage(project)
        capsys.readouterr()
        with pytest.raises(SystemExit, match="MLflow does not have all records; run the same command to try again"):
            outbox.app([], standalone_mode=False)
        assert capsys.readouterr().err.startswith("train_dmd waits in .work/train_dmd/k/mlflow/")
    outbox.app([], standalone_mode=False)
    assert capsys.readouterr().out.startswith("MLflow has all records")


def test_a_full_disk_of_the_work_folder_stops_the_stage(
    project: Path, store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Journal.append

    def refuse(journal: Journal, kind: str, **values: Any) -> None:
        if kind in ("metrics", "end"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(journal, kind, **values)

    monkeypatch.setattr(Journal, "append", refuse)
    with pytest.raises(OSError, match="No space"):
        stage(project)


# The following tests run the stage and the sender in separate processes, as in a real run.

TRAINING = """\
import signal, sys, time
from pathlib import Path
from causvid.harness.tracking import Made, child_run

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores SIGINT, and so do its children
root, steps, pause = Path.cwd(), int(sys.argv[1]), float(sys.argv[2])
with child_run("train_dmd", "smoke", root, {}, Made(key="k", inputs={}, upstream={}), root / ".work/train_dmd/k") as it:
    print(it.journal.folder.name, flush=True)
    for step in range(steps):
        it.log_metrics({"loss": 1 / (step + 1)}, step)
        print(step, flush=True)
        time.sleep(pause)
"""


@pytest.fixture
def beside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], subprocess.Popen[str]]:
    """Return a function that starts a training in a separate process. The training has its own sender process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(tracking.__file__).parents[2]))
    (project / "training.py").write_text(TRAINING)

    def begin(steps: int, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "training.py", str(steps), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


Begin = Callable[[int, float], subprocess.Popen[str]]
ENDLESS = 10**9  # number of steps; a test ends the training earlier


def begun(process: subprocess.Popen[str]) -> Tracker:
    assert process.stdout
    return Tracker(journal=Journal(Path(process.stdout.readline().strip())))


def test_a_store_that_is_locked_for_a_while_gets_the_complete_curve(beside: Begin, store: tuple[Path, str]) -> None:
    path, uri = store
    process = beside(30, 0.5)
    tracker = begun(process)
    with locked(path):
        assert process.stdout
        while process.stdout.readline().strip() != "15":
            pass
    _, said = process.communicate()
    assert process.returncode == 0
    assert said == "" or "database is locked" in one_line(said)
    assert curve(uri, tracker) == [(step, 1 / (step + 1)) for step in range(30)]


def test_a_server_that_is_absent_then_killed_and_restarted_gets_the_complete_curve(
    beside: Begin, store: tuple[Path, str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve in MLflow becomes complete while the training runs, without another command."""
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    process = beside(ENDLESS, 0.05)
    tracker = begun(process)
    try:
        for _ in range(2):
            server = start(store[1], port)
            wait_for(server, port)
            before = _rows(store[1], tracker)
            while _rows(store[1], tracker) <= before:
                time.sleep(0.2)
            kill(server)
        server = start(store[1], port)
        process.send_signal(signal.SIGINT)
        wait_for(server, port)
        _, said = process.communicate()
    finally:
        process.kill()
        kill(server)
    assert len([line for line in said.splitlines() if line.startswith("MLflow")]) == 1
    sender.send_waiting(project)
    server = start(store[1], port)
    try:
        wait_for(server, port)
        sender.send_waiting(project)
    finally:
        kill(server)
    steps = [step for step, _ in curve(store[1], tracker)]
    assert steps == list(range(len(steps)))
    assert run_of(store[1], tracker).info.status == "KILLED"


def _rows(uri: str, tracker: Tracker) -> int:
    api = client(uri)
    everywhere = [experiment.experiment_id for experiment in api.search_experiments()]
    found = api.search_runs(everywhere, f"tags.{TOKEN} = '{tracker.journal.folder.name}'")
    return len(api.get_metric_history(found[0].info.run_id, "loss")) if found else 0


@pytest.mark.parametrize("who", ["stage", "sender", "both"])
def test_killed_processes_lose_no_record_that_the_stage_wrote(
    who: str, beside: Begin, store: tuple[Path, str], project: Path
) -> None:
    """When the stage is started again, the stage continues its MLflow run."""
    process = beside(ENDLESS, 0.05)
    tracker = begun(process)
    while _rows(store[1], tracker) < 3:
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    if who != "stage":
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    process.send_signal(signal.SIGINT if who == "sender" else signal.SIGKILL)
    written = [int(line) for line in process.communicate()[0].split()]
    again = beside(len(written) + 5, 0)
    assert begun(again).journal == tracker.journal
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    steps = [step for step, _ in curve(store[1], tracker)]
    assert sorted(steps) == list(range(len(written) + 5))
    assert run_of(store[1], tracker).info.status == "FINISHED"


def test_a_sender_that_cannot_start_prints_one_line(
    project: Path, store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "sending", sender.sending)
    monkeypatch.setattr(sys, "executable", str(project / "no python"))
    tracker = stage(project)
    assert "No such file" in one_line(capsys.readouterr().err)
    sender.send_waiting(project)
    assert_complete(store[1], tracker)


def test_a_stage_waits_only_for_a_limited_time_for_its_sender(
    project: Path, store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stage kills its sender after a time limit if the sender hangs."""
    hangs = project / "hangs.sh"
    hangs.write_text("#!/bin/sh\nexec sleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(tracking, "sending", sender.sending)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(sender, "GRACE", -9.5)
    stage(project)
    assert "its sender ended with exit code -9" in one_line(capfd.readouterr().err)
