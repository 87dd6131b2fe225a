"""What MLflow is told: experiments, parents, children, tags."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from causvid.runtime import tracking
from causvid.runtime.tracking import child_run, client, git_tags, start_parent, tracking_uri

# MLflow's own queries, which SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")


class FakeProcess:
    """A process of the tree above a stage."""

    def __init__(self, pid: int, command: list[str]) -> None:
        self.pid, self.command = pid, command

    def cmdline(self) -> list[str]:
        return self.command

    def create_time(self) -> float:
        return 1000.0 + self.pid


def under(monkeypatch: pytest.MonkeyPatch, *above: FakeProcess) -> None:
    """Let the stages of this test run below these processes, the nearest first."""

    class Here:
        def parents(self) -> list[FakeProcess]:
            return list(above)

    monkeypatch.setattr(tracking.psutil, "Process", Here)


DVC = FakeProcess(7, ["/env/bin/python", "/env/bin/dvc", "repro"])
SHELL = FakeProcess(3, ["/bin/bash", "-c", "make repro"])
NOT_DVC = FakeProcess(5, ["/bin/bash", "dvc-experiments/run-dvc.sh"])


def runs(uri: str, profile: str = "smoke") -> dict[str, list[Any]]:
    api = client(uri)
    experiment = api.get_experiment_by_name(f"causvid/{profile}")
    assert experiment is not None
    found: dict[str, list[Any]] = {}
    for run in api.search_runs([experiment.experiment_id]):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def test_a_child_records_its_stage_params_and_metrics(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, NOT_DVC, SHELL)
    params = {"seed": 0, "video": {"fps": 8}, "long": "x" * 9000}
    with child_run("sample@dmd", "smoke", tmp_path, params, "k3y") as tracker:
        tracker.log_metrics({"loss": 2.0}, 1)
        pickle.loads(pickle.dumps(tracker)).log_metrics({"loss": 0.5}, 2)  # as a Ray worker does
    (run,) = runs(mlflow_uri)["sample@dmd"]
    assert (run.data.tags["dvc_stage"], run.data.tags["key"]) == ("sample@dmd", "k3y")
    assert "mlflow.parentRunId" not in run.data.tags  # nobody above is dvc
    assert run.data.params["seed"] == "0"
    assert run.data.params["video.fps"] == "8"
    assert len(run.data.params["long"]) == tracking.VALUE_LIMIT
    assert run.info.status == "FINISHED"
    history = client(mlflow_uri).get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 0.5)]


def test_an_artifact_is_kept(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.mp4").write_bytes(b"video")
    with child_run("sample", "smoke", tmp_path, {}, "k") as tracker:
        tracker.log_artifact(tmp_path / "0.mp4", "samples")
    assert [f.path for f in client(mlflow_uri).list_artifacts(tracker.run_id, "samples")] == ["samples/0.mp4"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_child_that_fails_says_so(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    under(monkeypatch)
    with pytest.raises(type(error)), child_run("resample", "smoke", tmp_path, {}, "k"):
        raise error
    (run,) = runs(mlflow_uri)["resample"]
    assert run.info.status == "FAILED"


def test_stages_of_one_repro_share_a_parent_and_the_next_repro_gets_its_own(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = FakeProcess(9, DVC.command)
    for process, stage in [(DVC, "download"), (DVC, "resample"), (again, "resample")]:
        under(monkeypatch, SHELL, process, SHELL)
        with child_run(stage, "smoke", tmp_path, {}, "k"):
            pass
    found = runs(mlflow_uri)
    parents = {run.data.tags["dvc_process"]: run.info.run_id for run in found["repro"]}
    assert set(parents) == {"7@1007.00", "9@1009.00"}
    children = sorted(
        (run.data.tags["mlflow.parentRunId"], name) for name in ("download", "resample") for run in found[name]
    )
    assert children == sorted(
        [(parents["7@1007.00"], "download"), (parents["7@1007.00"], "resample"), (parents["9@1009.00"], "resample")]
    )
    assert {run.info.status for run in found["repro"]} == {"FINISHED"}


def test_a_flow_hands_its_parent_down_and_ends_it_itself(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, DVC)
    flow = start_parent("distill", "smoke", tmp_path, {"prefect_run": "abc"})
    monkeypatch.setenv(tracking.PARENT_VARIABLE, flow)
    with child_run("download", "smoke", tmp_path, {}, "k"):
        pass
    found = runs(mlflow_uri)
    assert set(found) == {"distill", "download"}
    assert found["download"][0].data.tags["mlflow.parentRunId"] == flow
    assert found["distill"][0].info.status == "RUNNING"
    assert found["distill"][0].data.tags["prefect_run"] == "abc"


def test_profiles_have_experiments_of_their_own(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch)
    for profile in ("smoke", "laptop"):
        with child_run("download", profile, tmp_path, {}, "k"):
            pass
    assert len(runs(mlflow_uri, "smoke")["download"]) == len(runs(mlflow_uri, "laptop")["download"]) == 1


def test_the_uri_is_absolute_unless_the_user_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Path()) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(Path()) == "http://127.0.0.1:5000"


def test_git_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_tags(tmp_path) == {}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": head, "git_dirty": "false"}
    (tmp_path / "new").write_text("untracked files are no change")
    assert git_tags(tmp_path)["git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["git_dirty"] == "true"
