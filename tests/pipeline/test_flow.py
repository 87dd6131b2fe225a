"""Prefect flows run a tiny DVC pipeline with Prefect's test server, and the smoke profile without a server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.states import Running
from prefect.testing.utilities import prefect_test_harness

from flows import dvc_flow, dvc_task
from flows.ablate import ablate
from flows.distill import distill
from tests.pipeline.conftest import Clone
from tests.unit.flows import tiny_pipeline

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="session")
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def root(_prefect: None, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tiny_pipeline.make(tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    return root


def run(*targets: str) -> State[Any]:
    return distill(list(targets), return_state=True)


def task_runs() -> list[TaskRun]:
    """Return the task runs of the latest flow run from Prefect's server."""
    with get_client(sync_client=True) as client:
        latest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[latest.id])))


def task_states() -> dict[str, str]:
    return {run.name: str(run.state_name) for run in task_runs()}


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])), sort=ArtifactSort.CREATED_DESC, limit=1
        )
    return str(artifacts[0].data)


def parents(uri: str) -> list[str]:
    """Return the status of each MLflow run in the experiment of the tiny pipeline."""
    api = MlflowClient(uri)
    experiment = api.get_experiment_by_name("causvid/tiny")
    assert experiment is not None
    return [run.info.status for run in api.search_runs([experiment.experiment_id])]


def test_the_first_flow_runs_all_stages_in_the_order_of_dvcs_graph(root: Path) -> None:
    first = run()
    assert (first.name, first.message) == ("Completed", "4 ran")
    assert [record.stage for record in first.result()] == tiny_pipeline.STAGES
    assert task_states() == dict.fromkeys(tiny_pipeline.STAGES, "Ran")
    assert (root / "report.txt").read_text() == "1\n2\n"
    names = {run.id: run.name for run in task_runs()}
    waits: dict[str, list[Any]] = {run.name: run.task_inputs.get("wait_for", []) for run in task_runs()}
    edges = {name: sorted(names[upstream.id] for upstream in inputs) for name, inputs in waits.items()}
    assert edges == {"download": [], "train@a": ["download"], "train@b": ["download"], "report": ["train@a", "train@b"]}
    assert {run.name for run in task_runs() if "gpu" in run.tags} == {"train@a", "train@b"}
    assert '"stage": "report", "outcome": "Ran"' in artifact("stages")


def test_the_second_pipeline_has_a_separate_flow(root: Path) -> None:
    """The flow runs only upstream stages of the first pipeline.

    A changed param reruns the stages that use the param.
    """
    tiny_pipeline.add_second(root)
    first = ablate(return_state=True)
    assert (first.name, first.message) == ("Completed", "5 ran")
    assert [record.stage for record in first.result()] == tiny_pipeline.SECOND_STAGES
    assert (root / "ablation" / "rows" / "y.json").read_text() == '{"row":"y"}\n'
    assert (root / "ablation" / "y.txt").read_text() == "3\nclips: y\n"
    assert not (root / "report.txt").exists()
    assert ablate(["row@x"], return_state=True).message == "3 unchanged"
    changed = (
        (root / "ablation" / "dvc.yaml")
        .read_text()
        .replace("'clips: ${item.row}'", "'clips: ${item.row}' | sed s/y/z/")
    )
    (root / "ablation" / "dvc.yaml").write_text(changed)
    # Both params@ stages have a changed command. Only one of the rows has a changed value.
    assert ablate(return_state=True).message == "3 ran, 2 unchanged"
    assert run().message == "3 ran, 1 unchanged"


def test_stages_are_unchanged_or_restored(root: Path, mlflow_uri: str) -> None:
    subprocess.run([tiny_pipeline.DVC, "repro", "--quiet"], cwd=root, check=True)
    assert run().message == "4 unchanged"
    assert task_states() == dict.fromkeys(tiny_pipeline.STAGES, "Unchanged")
    (root / "a.txt").unlink()
    assert run("train@a").message == "1 restored, 1 unchanged"
    assert task_states() == {"download": "Unchanged", "train@a": "Restored"}
    assert parents(mlflow_uri) == [], "there is a parent run without children"


def test_no_stage_downstream_of_a_failed_stage_runs(root: Path) -> None:
    tiny_pipeline.change(root, "train", cmd="false")
    state = run()
    assert state.is_failed()
    assert state.message == "stage train@a failed (dvc's exit code 255); stage train@b failed (dvc's exit code 255)"
    assert "exited with 1" in str(state.result(raise_on_failure=False))
    assert task_states() == {"download": "Ran", "train@a": "Failed", "train@b": "Failed", "report": "NotReady"}
    assert "NotReady" in artifact("stages")
    assert not (root / "report.txt").exists()


def test_a_failed_stage_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_flow, "run_stage", dvc_task.run_stage.with_options(retry_delay_seconds=0))
    pipeline = (root / "dvc.yaml").read_text().replace("gpu: true, timeout: 60, retries: 0", "retries: 1")
    (root / "dvc.yaml").write_text(pipeline)
    tiny_pipeline.change(root, "train", cmd="test -e tried || { touch tried; exit 1; }")
    assert run("train@a").message == "2 ran"


def test_incomplete_lock_files_are_repaired(root: Path) -> None:
    run("download")
    (root / "dvc.lock").write_text("")
    (root / ".dvc" / "tmp" / "rwlock").write_text("")
    assert run("download").message == "1 restored"


def test_flow_runs_of_killed_processes_are_marked_as_crashed(root: Path) -> None:
    with get_client(sync_client=True) as client:
        dead, other = (
            client.create_flow_run(distill, tags=[f"{socket.gethostname()}:{place}"], state=Running())
            for place in (root, "/elsewhere")
        )
        run("download")
        assert client.read_flow_run(dead.id).state_name == "Crashed"
        assert client.read_flow_run(other.id).state_name == "Running"


def test_outs_are_pushed_and_a_failing_remote_does_not_stop_the_flow(root: Path, tmp_path: Path) -> None:
    remote = "[core]\n    remote = here\n['remote \"here\"']\n    url = {}\n"
    (root / ".dvc" / "config").write_text(remote.format(tmp_path / "remote"))
    assert run("download").message == "1 ran"
    assert [file.read_text() for file in (tmp_path / "remote").rglob("*") if file.is_file()] == ["3\n"]
    (root / ".dvc" / "config").write_text(remote.format("/proc/none"))
    assert run("train@a").message == "1 ran, 1 unchanged"


# This stage has a child run in MLflow, because a flow without child runs has no run in MLflow.
CHILD = """\
from pathlib import Path
from causvid.harness.tracking import Made, child_run

made = Made(key="0123", inputs={}, upstream={})
with child_run("train", "tiny", Path.cwd(), {}, made, Path(".work/train/0123")):
    pass
"""


def test_the_headline_progress_and_the_link_to_mlflow_are_artifacts(root: Path, mlflow_uri: str) -> None:
    (root / "child.py").write_text(CHILD)
    (root / "child.sh").write_text(f"exec {sys.executable} child.py\n")
    lines = "echo train: 1/4, 3 s left; sleep 0.5; echo train: 3/4, 1 s left; sh child.sh"
    tiny_pipeline.change(root, "train", cmd=lines)
    (root / "reports/measure_latency").mkdir(parents=True)
    (root / "reports/measure_latency/metrics.json").write_text('{"student": {"fps": 84.96}}')
    run("train@a")
    assert json.loads(artifact("headline")) == [{"measure": "frames per second", "value": 85.0}]
    assert float(artifact("progress-train-a")) == 100
    api = MlflowClient(mlflow_uri)
    link = artifact("mlflow")
    assert "(http://127.0.0.1:5000/#/runs/" in link
    parent = api.get_run(link.split("/runs/")[1][:32])
    assert (parent.info.run_name, parent.info.status, parent.info.lifecycle_stage) == ("tiny", "FINISHED", "active")
    assert "| train@a | Ran |" in parent.data.tags["mlflow.note.content"]


def test_only_one_flow_runs_at_a_time(root: Path) -> None:
    (root / ".dvc" / "tmp").mkdir()
    with FileLock(root / ".dvc" / "tmp" / "flow.lock"):
        state = run()
    assert "another flow is running" in str(state.message)
    assert task_states() == {}


def test_an_unknown_stage_is_an_error_with_one_sentence(root: Path) -> None:
    state = run("trian")
    assert "targets: 'trian' is not a stage; choose from download" in str(state.message)


def test_the_report_is_an_artifact_with_embedded_images(root: Path) -> None:
    (root / "reports").mkdir()
    (root / "reports" / "sheet.png").write_bytes(b"\x89PNG")
    (root / "reports" / "report.md").write_text("# Tiny\n![sheet](sheet.png)\n")
    (root / "reports" / "figures").mkdir()
    (root / "reports" / "figures" / "samples.png").write_bytes(b"\x89PNG")
    run("download")
    assert artifact("samples") == "![The same prompts and noise, by every model](data:image/png;base64,iVBORw==)"
    assert artifact("report") == "# Tiny\n![sheet](data:image/png;base64,iVBORw==)\n"


def test_a_flow_and_dvc_repro_give_the_same_bytes(smoke: Clone, make_clone: Callable[[str], Clone]) -> None:
    """The flow runs the stages up to the samples of the student.

    The test in test_own_videos.py runs the complete pipeline as a flow.
    """
    clone = make_clone("flow")
    flow = (sys.executable, "-m", "flows.distill", "sample@dmd")
    assert "Completed('13 ran, 1 unchanged')" in clone.run(*flow).stderr
    ours, theirs = clone.hashes(), smoke.hashes()
    assert len(ours) == 14
    for stage in ours:
        assert ours[stage] == theirs[stage], stage
    assert "Completed('14 unchanged')" in clone.run(*flow).stderr
    assert clone.leaks() == []  # one of the searched files is Prefect's database
    assert (clone.root / ".prefect" / "prefect.db").is_file()
