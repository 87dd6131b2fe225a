"""MLflow's store has a valid URI in any folder, several processes can create the store, and its schema is checked."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from causvid.harness import mlflow_store, parents, tracking
from causvid.harness.mlflow_store import StoreError, client, own_uri, tracking_uri
from causvid.harness.tracking import Made, child_run
from flows import servers
from tests.unit.conftest import send_here
from tests.unit.harness.mlflow_server import free_port, kill, serving, start, wait_for

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")

# This stage sends every kind of record to MLflow, and uses the folder in which the stage runs.
STAGE = """\
import sys
from pathlib import Path
from causvid.harness.tracking import Made, child_run

name, root = sys.argv[1], Path.cwd()
(root / "picture.txt").write_text("kept")
with child_run(name, "smoke", root, {"seed": 0}, Made(key="k", inputs={}, upstream={}), root / ".work" / name / "k") as it:
    it.log_metrics({"loss": 0.5}, 1)
    it.log_artifact(root / "picture.txt", "samples")
"""
MADE = Made(key="k", inputs={}, upstream={})
# These folder names contain characters that have a meaning in URIs, ini files or shells.
NAMES = [
    "feature%2Fx",
    "a?b=c&d#e",
    "100%",
    "%",
    "?uri=true",
    "file:x;y@z",
    "[h] {i} $HOME",
    'it\'s "ü"',
    "back\\slash+é",
]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CAUSVID_PARENT_RUN_ID", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(mlflow_store.__file__).parents[2]))


def stage(name: str, root: Path) -> subprocess.Popen[str]:
    (root / "stage.py").write_text(STAGE)
    command = [sys.executable, "stage.py", name]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_ended_well(process: subprocess.Popen[str]) -> None:
    said = process.communicate()
    assert (process.returncode, said[1] or "") == (0, ""), said


def names(root: Path) -> dict[str, str]:
    """Return a map of run name to run status for the store of a project."""
    api = client(own_uri(root))
    found = api.search_runs([experiment.experiment_id for experiment in api.search_experiments()])
    assert len(found) == len({run.info.run_name for run in found}), "a run is stored twice"
    return {run.info.run_name: run.info.status for run in found}


@pytest.mark.parametrize("name", NAMES)
def test_the_store_is_in_the_project_for_any_folder_name(name: str, tmp_path: Path, migrated_database: Path) -> None:
    root = tmp_path / name / "project"
    root.mkdir(parents=True)
    (root / "mlflow.db").write_bytes(migrated_database.read_bytes())
    assert_ended_well(stage("download", root))
    assert names(root) == {"download": "FINISHED"}
    api = client(own_uri(root))
    (run,) = api.search_runs([mlflow_store.experiment_id(api, own_uri(root), "smoke", root)])
    assert [file.path for file in api.list_artifacts(run.info.run_id, "samples")] == ["samples/picture.txt"]
    (kept,) = (root / "mlruns").rglob("picture.txt")
    assert kept.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == [name], "a file or folder was created beside the project"


def test_a_new_store_and_a_server_work_in_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow creates the tables through an ini file, in which % has a meaning. MLflow's server passes the URI on."""
    root = tmp_path / "b%41c ?#&'\"ü" / "c%%d"
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    (root / "params.yaml").write_text("profile: smoke\n")
    uri, address = servers.mlflow_store(os.environ)
    assert (uri, address.partition("?")[0]) == (own_uri(root), "/#/experiments/1/runs")
    assert sorted(path.name for path in root.iterdir()) == ["mlflow.db", "params.yaml"]
    port = free_port()
    artifacts = (root / "mlartifacts").as_uri()
    with serving(uri, port, "--artifacts-destination", artifacts):
        api = client(f"http://127.0.0.1:{port}")
        run_id = api.create_run("0").info.run_id
        monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        made = api.create_run(api.create_experiment("served")).info.run_id
        (root / "picture.txt").write_text("kept")
        api.log_artifact(made, "picture.txt", "samples")
    assert len(list((root / "mlartifacts").rglob("picture.txt"))) == 1
    assert client(uri).get_run(run_id).info.status == "RUNNING"
    assert [path.name for path in tmp_path.iterdir()] == [root.parent.name]


def stage_here(name: str, root: Path) -> None:
    """Run a stage of the project ``root`` in this process, with an artifact."""
    (root / "picture.txt").write_text("kept")
    with child_run(name, "smoke", root, {}, MADE, root / ".work" / name / "k") as tracker:
        tracker.log_artifact(root / "picture.txt", "samples")


@pytest.mark.parametrize(
    ("how", "before", "after"), [("moved", "a b%41", "ü?#"), ("moved", "long/name", "x"), ("copied", "a", "b")]
)
def test_artifacts_are_found_after_the_folder_was_moved_or_copied(
    how: str, before: str, after: str, tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "sending", send_here)
    monkeypatch.setattr(parents, "dvc_above", lambda: None)
    old, new = tmp_path / before, tmp_path / after
    (old / "mlruns").mkdir(parents=True)
    shutil.copy(migrated_database, old / "mlflow.db")
    stage_here("download", old)
    elsewhere = client(own_uri(old)).create_experiment("elsewhere", artifact_location="file:///other/mlruns")
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    stage_here("resample", new)
    api = client(own_uri(new))
    found = api.search_runs([mlflow_store.experiment_id(api, own_uri(new), "smoke", new)])
    assert len(found) == 2
    for run in found:
        assert run.info.artifact_uri.startswith(f"{new.as_uri()}/mlruns/causvid/smoke/")
        kept = api.download_artifacts(run.info.run_id, "samples/picture.txt", str(tmp_path))
        assert Path(kept).read_text() == "kept"
    assert len(list((new / "mlruns").rglob("picture.txt"))) == 2
    assert api.get_experiment(elsewhere).artifact_location == "file:///other/mlruns"
    if how == "copied":
        (run,) = client(own_uri(old)).search_runs([found[0].info.experiment_id])
        assert run.info.artifact_uri.startswith(f"{old.as_uri()}/")


def test_a_copied_store_without_its_artifacts_keeps_their_addresses(tmp_path: Path, migrated_database: Path) -> None:
    shutil.copy(migrated_database, tmp_path)
    place = client(own_uri(tmp_path)).get_experiment("0").artifact_location
    assert place == f"{migrated_database.parent.as_uri()}/mlruns/0"


def test_the_default_uri_is_absolute_and_the_user_can_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Path()) == f"sqlite+pysqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(Path()) == "http://127.0.0.1:5000"


@pytest.mark.parametrize("beside", ["stage", "flow", "command", "server"])
def test_two_processes_can_create_a_store_at_the_same_time(
    beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two processes are two stages, or a stage and a flow that ends, ``make ui``, or MLflow's server."""
    monkeypatch.chdir(tmp_path)
    expected = {"download": "FINISHED"}
    with _beside(beside, tmp_path) as other:
        first = stage("download", tmp_path)
        if beside == "stage":
            expected |= {"resample": "FINISHED"}
        assert_ended_well(first)
        if other is not None:
            assert_ended_well(other)
    assert names(tmp_path) == expected
    left = {path.name for path in tmp_path.glob("mlflow.db*")}
    assert left == {"mlflow.db"}


@contextmanager
def _beside(kind: str, root: Path) -> Iterator[subprocess.Popen[str] | None]:
    if kind == "server":  # the server must start successfully, too
        port = free_port()
        server = start(own_uri(root), port)
        try:
            yield None
            wait_for(server, port)
        finally:
            kill(server)
        return
    if kind == "stage":
        process = stage("resample", root)
    elif kind == "command":
        process = subprocess.Popen([sys.executable, "-m", "causvid.harness.mlflow_store"], cwd=root, text=True)
    else:
        outbox = [sys.executable, "-m", "causvid.harness.outbox"]
        (root / "params.yaml").write_text("profile: smoke\n")
        begin = [*outbox, "begin", "--name", "distill", "--tags", "{}"]
        token = subprocess.run(begin, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        end = [*outbox, "end", "--token", token, "--status", "FINISHED"]
        process = subprocess.Popen(end, cwd=root, text=True)
    yield process


def test_a_process_waits_for_tables_that_another_one_is_creating(tmp_path: Path, migrated_database: Path) -> None:
    """The database file is first empty, as after the start of MLflow's server, then incomplete, then complete."""
    path, complete = tmp_path / "mlflow.db", migrated_database.read_bytes()
    path.touch()
    contents = [with_schema(tmp_path / "part", migrated_database, "451aebb31d03", drop="logged_models"), complete]

    def create() -> None:
        for content in contents:
            time.sleep(1)
            path.with_name("next").write_bytes(content)
            path.with_name("next").replace(path)

    creator = threading.Thread(target=create)
    creator.start()
    found = client(mlflow_store.sqlite_uri(path)).search_experiments()
    creator.join()
    assert [it.name for it in found] == ["Default"]
    assert path.read_bytes() == complete


def test_an_old_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    set_old_times(path)
    assert [it.name for it in client(mlflow_store.sqlite_uri(path)).search_experiments()] == ["Default"]


def set_old_times(path: Path) -> None:
    """Set the times of a file as if no process had written to the file recently."""
    before = time.time() - 2 * mlflow_store.BEING_MADE
    os.utime(path, (before, before))


def with_schema(path: Path, source: Path, version: str, drop: str | None = None) -> bytes:
    """Write a store of another version of MLflow to ``path``, and return the content of the file."""
    path.write_bytes(source.read_bytes())
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = ?", (version,))
        if drop:
            database.execute(f"drop table {drop}")
    set_old_times(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("version", "drop"),
    [("451aebb31d03", "logged_models"), ("451aebb31d03", "webhooks"), ("451aebb31d03", None), ("ffffffffffff", None)],
)
def test_a_store_of_another_version_is_refused_and_unchanged(
    version: str, drop: str | None, tmp_path: Path, migrated_database: Path
) -> None:
    """MLflow itself would upgrade an older store without a certain table, because such a store seems to be new."""
    path = tmp_path / "mlflow.db"
    before = with_schema(path, migrated_database, version, drop)
    with pytest.raises(StoreError, match=rf"mlflow.db has schema {version}, .*mlflow db upgrade"):
        client(mlflow_store.sqlite_uri(path))
    assert path.read_bytes() == before
