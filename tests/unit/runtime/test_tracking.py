"""What MLflow is told: experiments, parents, children, tags."""

from __future__ import annotations

import json
import pickle
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from causvid.runtime import tracking
from causvid.runtime.tracking import Made, child_run, client, git_tags, start_parent, tracking_uri

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


MADE = Made(key="k3y", inputs={}, upstream={})
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
    with child_run("sample@dmd", "smoke", tmp_path, params, MADE, tmp_path) as tracker:
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
    with child_run("sample", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        tracker.log_artifact(tmp_path / "0.mp4", "samples")
    assert [f.path for f in client(mlflow_uri).list_artifacts(tracker.run_id, "samples")] == ["samples/0.mp4"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_child_that_fails_says_so(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    under(monkeypatch)
    with pytest.raises(type(error)), child_run("resample", "smoke", tmp_path, {}, MADE, tmp_path):
        raise error
    (run,) = runs(mlflow_uri)["resample"]
    assert run.info.status == "FAILED"


def test_stages_of_one_repro_share_a_parent_and_the_next_repro_gets_its_own(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = FakeProcess(9, DVC.command)
    for process, stage in [(DVC, "download"), (DVC, "resample"), (again, "resample")]:
        under(monkeypatch, SHELL, process, SHELL)
        with child_run(stage, "smoke", tmp_path, {}, MADE, tmp_path):
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
    with child_run("download", "smoke", tmp_path, {}, MADE, tmp_path):
        pass
    found = runs(mlflow_uri)
    assert set(found) == {"distill", "download"}
    assert found["download"][0].data.tags["mlflow.parentRunId"] == flow
    assert found["distill"][0].info.status == "RUNNING"
    assert found["distill"][0].data.tags["prefect_run"] == "abc"


def test_a_child_knows_what_it_is_made_from(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under(monkeypatch)
    md5, sha256 = "0" * 32 + ".dir", "1" * 64
    made = Made(key="k", inputs={"data/prompts": md5, "in.txt": sha256}, upstream={"download": "a"})
    with child_run("sample", "smoke", tmp_path, {}, made, tmp_path):
        pass
    (run,) = runs(mlflow_uri)["sample"]
    assert json.loads(run.data.tags["upstream"]) == {"download": "a"}
    found = {it.dataset.name: {tag.key: tag.value for tag in it.tags} for it in run.inputs.dataset_inputs}
    assert (found["data/prompts"]["dvc.md5"], found["in.txt"]["sha256"]) == (md5, sha256)


def test_results_are_numbers_by_dotted_names_and_lists_are_steps(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch)
    windows = [{"velocity": 0.5, "note": "x"}, {"velocity": 0.25}]
    with child_run("evaluate", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        tracker.log_results({"n": 3, "note": None, "drift": {"judge": windows, "sharpness": [1.0, 2.0]}})
    history = {
        name: [(point.step, point.value) for point in client(mlflow_uri).get_metric_history(tracker.run_id, name)]
        for name in client(mlflow_uri).get_run(tracker.run_id).data.metrics
    }
    assert history == {
        "n": [(0, 3.0)],
        "drift.judge.velocity": [(0, 0.5), (1, 0.25)],
        "drift.sharpness": [(0, 1.0), (1, 2.0)],
    }


def cut_short(folder: Path) -> tracking.Tracker:
    """The run of a training that was interrupted after a step."""
    kept = []
    with suppress(KeyboardInterrupt), child_run("train_dmd", "smoke", folder, {"a": 1}, MADE, folder) as tracker:
        kept.append(tracker)
        tracker.log_metrics({"loss": 1.0}, 1)
        raise KeyboardInterrupt
    return kept[0]


def test_a_stage_that_was_cut_short_goes_on_in_its_run_below_the_new_parent(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, DVC)
    first = cut_short(tmp_path)
    under(monkeypatch, FakeProcess(9, DVC.command))
    with child_run("train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path) as second:
        second.log_metrics({"loss": 0.5}, 2)
        assert client(mlflow_uri).get_run(second.run_id).info.status == "RUNNING"
    assert second == first
    found = runs(mlflow_uri)
    (run,), parents = found["train_dmd"], {it.data.tags["dvc_process"]: it.info.run_id for it in found["repro"]}
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parents["9@1009.00"])
    with child_run(
        "train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path
    ) as third:  # finished: made again, it is new
        pass
    assert third != first


@pytest.mark.parametrize("left", ["", '{"uri": "sqlite:///elsewhere.db", "run_id": "1"}', "gone"])
def test_a_run_that_is_not_there_is_made_anew(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """A note cut short by a kill, one of another store, one of a run that somebody deleted."""
    under(monkeypatch)
    note = json.dumps({"uri": mlflow_uri, "run_id": "0" * 32}) if left == "gone" else left
    (tmp_path / tracking.UNFINISHED).write_text(note)
    with child_run("sample", "smoke", tmp_path, {}, MADE, tmp_path):
        pass
    assert len(runs(mlflow_uri)["sample"]) == 1


def test_profiles_have_experiments_of_their_own(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch)
    for profile in ("smoke", "laptop"):
        with child_run("download", profile, tmp_path, {}, MADE, tmp_path):
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


def test_scores_of_an_item_are_of_the_model_that_was_made_for_it(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch)
    for key in ("old", "new"):
        made = Made(key=key, inputs={}, upstream={})
        with child_run("train_dmd", "smoke", tmp_path, {}, made, tmp_path) as tracker:
            for _ in range(2):  # a stage that was killed after it had told
                tracker.log_model("dmd", Path("data/checkpoints/dmd"), key)
            assert tracker.model_id is None
    made = Made(key="k", inputs={}, upstream={"train_dmd": "old", "download": "d"})
    for stage in ("evaluate@dmd", "evaluate@clips", "report"):
        with child_run(stage, "smoke", tmp_path, {}, made, tmp_path) as tracker:
            tracker.log_results({"velocity": 0.5})
    api = client(mlflow_uri)
    (old,) = api.search_logged_models(api_experiments(api), "tags.key = 'old'")
    (new,) = api.search_logged_models(api_experiments(api), "tags.key = 'new'")
    assert [(metric.key, metric.value) for metric in old.metrics] == [("velocity", 0.5)]
    assert (old.name, str(old.status), old.tags["path"]) == ("dmd", "READY", "data/checkpoints/dmd")
    assert not new.metrics


def api_experiments(api: Any) -> list[str]:
    return [experiment.experiment_id for experiment in api.search_experiments()]


def test_a_runs_page_says_what_it_is_made_from_and_the_machine_is_watched(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch)
    monkeypatch.setattr(tracking, "SYSTEM_SECONDS", 0.01)
    made = Made(key="k3y", inputs={"data/lmdb/latents": "0123456789abcdef"}, upstream={})
    api = client(mlflow_uri)
    with child_run("train_dmd", "smoke", tmp_path, {}, made, tmp_path) as tracker:
        while not any(name.startswith("system/") for name in api.get_run(tracker.run_id).data.metrics):
            time.sleep(0.01)
    run = api.get_run(tracker.run_id)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.data.metrics.keys()
    assert "| `data/lmdb/latents` | 01234567 |" in run.data.tags["mlflow.note.content"]
    assert "dvc repro train_dmd" in run.data.tags["mlflow.note.content"]


def test_what_mlflow_or_the_machine_refuses_is_a_line_and_no_failed_stage(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.system_metrics import system_metrics_monitor
    from mlflow.tracking import MlflowClient

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no such endpoint")

    def hidden() -> None:
        raise AttributeError("no network here")

    under(monkeypatch)
    monkeypatch.setattr(MlflowClient, "search_logged_models", refuse)
    monkeypatch.setattr(system_metrics_monitor, "NetworkMonitor", hidden)
    made = Made(key="k", inputs={}, upstream={"train_dmd": "d"})
    with child_run("evaluate@dmd", "smoke", tmp_path, {}, made, tmp_path) as tracker:
        tracker.log_model("dmd", Path("data/checkpoints/dmd"), "k")
    assert client(mlflow_uri).get_run(tracker.run_id).info.status == "FINISHED"
    said = capsys.readouterr().err
    assert "this machine is not watched: no network here" in said
    assert said.count("no such endpoint") == 2
