"""MLflow receives the correct experiments, parent and child runs, and tags."""

from __future__ import annotations

import json
import pickle
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from causvid.harness import machine, parents, tracking
from causvid.harness.delivery import TOKEN, Delivery
from causvid.harness.mlflow_store import client
from causvid.harness.processes import Owner
from causvid.harness.sender import send_waiting
from causvid.harness.tracking import Made, Tracker, child_run, end_parent, start_parent

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")


def under(monkeypatch: pytest.MonkeyPatch, dvc: Owner | None) -> None:
    """Let ``dvc`` be the dvc process that started the stages in this test; None = no dvc process."""
    monkeypatch.setattr(parents, "dvc_above", lambda: dvc)


MADE = Made(key="k3y", inputs={}, upstream={})
DVC, NEXT = Owner("a host", 7, 1007.0), Owner("a host", 9, 1009.0)  # processes of another host never end in this test


def runs(uri: str, profile: str = "smoke") -> dict[str, list[Any]]:
    api = client(uri)
    experiment = api.get_experiment_by_name(f"causvid/{profile}")
    assert experiment is not None
    found: dict[str, list[Any]] = {}
    for run in api.search_runs([experiment.experiment_id]):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def run_of(uri: str, tracker: Tracker) -> Any:
    """Return the only run of a stage's tracker."""
    api = client(uri)
    everywhere = [experiment.experiment_id for experiment in api.search_experiments()]
    (run,) = api.search_runs(everywhere, f"tags.{TOKEN} = '{tracker.journal.folder.name}'")
    return run


def points(uri: str, tracker: Tracker, name: str) -> list[tuple[int, float]]:
    """Return the history of a metric as (step, value) pairs."""
    return [(m.step, m.value) for m in client(uri).get_metric_history(run_of(uri, tracker).info.run_id, name)]


def test_a_child_records_its_stage_params_and_metrics(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
    params = {"seed": 0, "video": {"fps": 8}, "long": "x" * 9000}
    with child_run("sample@dmd", "smoke", tmp_path, params, MADE, tmp_path) as tracker:
        tracker.log_metrics({"loss": 2.0}, 1)
        # a Ray worker uses a pickled tracker in this way
        pickle.loads(pickle.dumps(tracker)).log_metrics({"loss": 0.5}, 2)
    (run,) = runs(mlflow_uri)["sample@dmd"]
    assert (run.data.tags["dvc_stage"], run.data.tags["key"]) == ("sample@dmd", "k3y")
    assert "mlflow.parentRunId" not in run.data.tags  # no parent process is dvc
    assert run.data.params["seed"] == "0"
    assert run.data.params["video.fps"] == "8"
    assert len(run.data.params["long"]) == tracking.VALUE_LIMIT
    assert run.info.status == "FINISHED"
    assert points(mlflow_uri, tracker, "loss") == [(1, 2.0), (2, 0.5)]
    assert not tracker.journal.exists, "a journal must be deleted once MLflow has all records"


def test_an_artifact_has_the_content_at_the_time_of_logging(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.mp4").write_bytes(b"video")
    with child_run("sample", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        tracker.log_artifact(tmp_path / "0.mp4", "samples")
        (tmp_path / "0.mp4").write_bytes(b"changed since")
    run_id = run_of(mlflow_uri, tracker).info.run_id
    assert [f.path for f in client(mlflow_uri).list_artifacts(run_id, "samples")] == ["samples/0.mp4"]
    assert Path(client(mlflow_uri).download_artifacts(run_id, "samples/0.mp4", tmp_path)).read_bytes() == b"video"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (SystemExit("no"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_a_stage_that_fails_or_is_stopped_ends_its_run_and_the_parent_run(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    under(monkeypatch, DVC)
    with child_run("download", "smoke", tmp_path, {}, MADE, tmp_path):
        pass
    with pytest.raises(type(error)), child_run("resample", "smoke", tmp_path, {}, MADE, tmp_path):
        raise error
    found = runs(mlflow_uri)
    (run,), (parent,) = found["resample"], found["smoke"]
    assert (run.info.status, parent.info.status) == (status, status)
    assert parent.info.end_time >= run.info.end_time


def test_a_repro_is_running_while_a_stage_runs_and_stays_failed_if_other_stages_continue(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, DVC)

    def running(stage: str) -> AbstractContextManager[Tracker]:
        return child_run(stage, "smoke", tmp_path, {}, MADE, tmp_path / ".work" / stage / "k")

    with running("download"):
        pass
    with running("resample"):
        send_waiting(tmp_path)
        assert runs(mlflow_uri)["smoke"][0].info.status == "RUNNING"
    assert runs(mlflow_uri)["smoke"][0].info.status == "FINISHED"
    with pytest.raises(ValueError, match="no"), running("train_vae"):
        raise ValueError("no")
    with running("encode_prompts"):
        pass
    assert [run.info.status for run in runs(mlflow_uri)["smoke"]] == ["FAILED"]
    assert len(runs(mlflow_uri)) == 5


def test_a_stopped_stage_ends_the_run_of_its_flow_but_a_failed_stage_does_not(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow may run a failed stage again, and it ends its run itself."""
    flow = start_flow(tmp_path, monkeypatch)
    for error, status in ((ValueError(), "RUNNING"), (KeyboardInterrupt(), "KILLED")):
        with pytest.raises(type(error)), child_run("download", "smoke", tmp_path, {}, MADE, tmp_path):
            raise error
        assert [run.info.status for run in runs(mlflow_uri)["smoke"]] == [status]
    with child_run("download", "smoke", tmp_path, {}, MADE, tmp_path):
        pass
    end_parent(flow, "FINISHED", "", tmp_path)
    send_waiting(tmp_path)
    assert [run.info.status for run in runs(mlflow_uri)["smoke"]] == ["FINISHED"]


def test_the_headline_is_on_the_run_of_the_repro_with_numbers_text_and_samples(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, DVC)
    videos = [tmp_path / model / "0.mp4" for model in ("teacher", "dmd")]
    for video in videos:
        video.parent.mkdir()
        video.write_text(f"video of {video.parent.name}")
    with child_run("report", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        tracker.log_headline({"velocity": 0.875, "fps": 85}, "It moves.", videos)
    (run,), (parent,) = runs(mlflow_uri)["report"], runs(mlflow_uri)["smoke"]
    assert parent.data.metrics == {"velocity": 0.875, "fps": 85.0}
    assert run.data.metrics == {}
    assert parent.data.tags["mlflow.note.content"].startswith("It moves.\n\n`dvc repro` of the profile `smoke`")
    api = client(mlflow_uri)
    view = json.loads(api.get_experiment(parent.info.experiment_id).tags["mlflow.sharedViewState.causvid"])
    assert (view["orderByKey"], view["selectedColumns"][:2]) == (
        "metrics.`velocity`",
        ["metrics.`velocity`", "metrics.`fps`"],
    )
    for video in videos:
        place = f"samples/{video.parent.name}"
        assert [file.path for file in api.list_artifacts(parent.info.run_id, place)] == [f"{place}/0.mp4"]


def test_a_stage_without_a_parent_run_drops_the_headline(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
    with child_run("report", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        tracker.log_headline({"velocity": 0.875}, "It moves.", [])
    assert list(runs(mlflow_uri)) == ["report"]


def test_the_headline_and_the_end_of_a_parent_run_are_sent_later_if_mlflow_fails(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_database: Path
) -> None:
    under(monkeypatch, DVC)
    (tmp_path / "own.db").write_bytes(b"no database at all " * 100)
    with child_run("report", "smoke", tmp_path, {}, MADE, tmp_path / ".work/report/k") as tracker:
        tracker.log_headline({"velocity": 0.875}, "It moves.", [])
    (tmp_path / "own.db").write_bytes(migrated_database.read_bytes())
    for _ in range(2):  # the second call must change nothing
        assert [outcome.reason for outcome in send_waiting(tmp_path) if outcome.reason] == []
        (parent,) = runs(mlflow_uri)["smoke"]
        assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"velocity": 0.875})
        assert len(client(mlflow_uri).get_metric_history(parent.info.run_id, "velocity")) == 1


def test_stages_of_one_repro_share_a_parent_run_and_the_next_repro_has_a_new_parent_run(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process, stage in [(DVC, "download"), (DVC, "resample"), (NEXT, "resample")]:
        under(monkeypatch, process)
        with child_run(stage, "smoke", tmp_path, {}, MADE, tmp_path):
            pass
    found = runs(mlflow_uri)
    repros = {run.data.tags[TOKEN]: run.info.run_id for run in found["smoke"]}
    assert set(repros) == {"a host:7@1007.00", "a host:9@1009.00"}
    children = sorted(
        (run.data.tags["mlflow.parentRunId"], name) for name in ("download", "resample") for run in found[name]
    )
    assert children == sorted(
        [
            (repros["a host:7@1007.00"], "download"),
            (repros["a host:7@1007.00"], "resample"),
            (repros["a host:9@1009.00"], "resample"),
        ]
    )
    assert {run.info.status for run in found["smoke"]} == {"FINISHED"}


def start_flow(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Begin the run of a flow, whose stages this test runs, and return the token of the run."""
    under(monkeypatch, DVC)
    (root / "params.yaml").write_text("profile: smoke\n")
    flow = start_parent("distill", root, {"prefect_run": "abc"})
    monkeypatch.setenv(tracking.PARENT_VARIABLE, flow)
    return flow


def test_a_flow_passes_its_run_to_stages_and_ends_the_run_itself(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = start_flow(tmp_path, monkeypatch)
    with child_run("download", "smoke", tmp_path, {}, MADE, tmp_path):
        pass
    (parent,), (child,) = runs(mlflow_uri)["smoke"], runs(mlflow_uri)["download"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, parent.data.tags["prefect_run"]) == ("RUNNING", "abc")
    journal = end_parent(flow, "FAILED", "note of the flow", tmp_path)
    (outcome,) = send_waiting(tmp_path)
    assert (outcome.run_id, outcome.reason) == (parent.info.run_id, None)
    (parent,) = runs(mlflow_uri)["smoke"]
    assert parent.info.status == "FAILED"
    assert parent.data.tags["mlflow.note.content"].endswith("\n\nnote of the flow")
    assert parent.data.tags["mlflow.source.name"] == "flow distill"
    assert not journal.exists
    assert set(runs(mlflow_uri)) == {"smoke", "download"}


def test_a_flow_without_a_child_leaves_no_run(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = end_parent(start_flow(tmp_path, monkeypatch), "FINISHED", "nothing to do", tmp_path)
    assert [outcome.run_id for outcome in send_waiting(tmp_path)] == [None]
    assert not journal.exists
    assert runs(mlflow_uri) == {}


def test_a_parent_run_of_another_program_is_used_unchanged(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, DVC)
    theirs = client(mlflow_uri).create_run("0", run_name="theirs").info.run_id
    monkeypatch.setenv(tracking.PARENT_VARIABLE, theirs)
    with child_run("download", "smoke", tmp_path, {}, MADE, tmp_path):
        pass
    (child,) = runs(mlflow_uri)["download"]
    assert child.data.tags["mlflow.parentRunId"] == theirs
    assert client(mlflow_uri).get_run(theirs).info.status == "RUNNING"


def test_a_child_run_records_its_inputs_and_upstream_keys(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
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
    under(monkeypatch, None)
    windows = [{"velocity": 0.5, "note": "x"}, {"velocity": 0.25}]
    with child_run("evaluate", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        tracker.log_results({"n": 3, "note": None, "drift": {"judge": windows, "sharpness": [1.0, 2.0]}})
    history = {name: points(mlflow_uri, tracker, name) for name in run_of(mlflow_uri, tracker).data.metrics}
    assert history == {
        "n": [(0, 3.0)],
        "drift.judge.velocity": [(0, 0.5), (1, 0.25)],
        "drift.sharpness": [(0, 1.0), (1, 2.0)],
    }


def interrupted_training(folder: Path) -> Tracker:
    """Run a training that is interrupted after two steps, and return its tracker."""
    kept = []
    with suppress(KeyboardInterrupt), child_run("train_dmd", "smoke", folder, {"a": 1}, MADE, folder) as tracker:
        kept.append(tracker)
        for step in (1, 2):
            tracker.log_metrics({"loss": 1 / step, "speed/steps": 2.0}, step)
        raise KeyboardInterrupt
    return kept[0]


def test_an_interrupted_stage_continues_its_run_below_the_new_parent(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, DVC)
    first = interrupted_training(tmp_path)
    assert run_of(mlflow_uri, first).info.status == "KILLED"
    under(monkeypatch, NEXT)
    with child_run("train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path) as second:
        Delivery(second.journal, tmp_path)()
        assert run_of(mlflow_uri, second).info.status == "RUNNING"
    assert second.journal == first.journal
    found = runs(mlflow_uri)
    (run,), repros = found["train_dmd"], {it.data.tags[TOKEN]: it for it in found["smoke"]}
    before, after = repros["a host:7@1007.00"], repros["a host:9@1009.00"]
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", after.info.run_id)
    assert (before.info.status, after.info.status) == ("KILLED", "FINISHED")
    with child_run("train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path) as third:
        pass
    assert third.journal != first.journal, "a finished stage that runs again must have a new run"


def test_a_step_that_is_repeated_after_a_kill_has_one_row(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check includes rows that were not sent, and the last values, which the stage reports as results."""
    under(monkeypatch, None)
    interrupted_training(tmp_path)
    with child_run("train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path) as tracker:
        for step in (2, 3):
            tracker.log_metrics({"loss": 1 / step, "speed/steps": 9.0}, step)
        tracker.log_results({"loss": 1 / 3, "steps": 3})
        tracker.log_results({"steps": 3})
    assert points(mlflow_uri, tracker, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert points(mlflow_uri, tracker, "speed/steps") == [(1, 2.0), (2, 2.0), (3, 9.0)]
    assert points(mlflow_uri, tracker, "steps") == [(0, 3.0)]


@pytest.mark.parametrize("how", ["deleted", "gone"])
def test_a_deleted_run_is_created_again_with_its_complete_curve(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, migrated_database: Path
) -> None:
    """A user deleted the run on MLflow's page, or deleted the complete store."""
    under(monkeypatch, None)
    tracker = interrupted_training(tmp_path)
    if how == "deleted":
        client(mlflow_uri).delete_run(run_of(mlflow_uri, tracker).info.run_id)
    else:
        (tmp_path / "own.db").write_bytes(migrated_database.read_bytes())
    with child_run("train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path) as tracker:
        tracker.log_metrics({"loss": 0.25}, 3)
    assert points(mlflow_uri, tracker, "loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_a_stage_that_continues_with_another_store_has_a_run_in_the_new_store(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_database: Path
) -> None:
    under(monkeypatch, None)
    first = interrupted_training(tmp_path)
    (tmp_path / "other.db").write_bytes(migrated_database.read_bytes())
    other = mlflow_uri.replace("own.db", "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    with child_run("train_dmd", "smoke", tmp_path, {"a": 1}, MADE, tmp_path) as second:
        pass
    assert second.journal != first.journal
    assert run_of(other, second).info.status == "FINISHED"


def test_each_profile_has_a_separate_experiment(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
    for profile in ("smoke", "laptop"):
        with child_run("download", profile, tmp_path, {}, MADE, tmp_path):
            pass
    assert len(runs(mlflow_uri, "smoke")["download"]) == len(runs(mlflow_uri, "laptop")["download"]) == 1


def test_scores_of_an_item_are_linked_to_its_upstream_model(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
    for key in ("old", "new"):
        made = Made(key=key, inputs={}, upstream={})
        with child_run("train_dmd", "smoke", tmp_path, {}, made, tmp_path) as tracker:
            for _ in range(2):  # the second call simulates a stage that was killed after the first call
                tracker.log_model("dmd", Path("data/checkpoints/dmd"), key)
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


def test_a_run_has_a_note_on_its_inputs_and_system_metrics(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(monkeypatch, None)
    made, stop = Made(key="k3y", inputs={"data/lmdb/latents": "0123456789abcdef"}, upstream={}), threading.Event()
    with child_run("train_dmd", "smoke", tmp_path, {}, made, tmp_path) as tracker:
        watcher = threading.Thread(target=machine.watch, args=(tracker.journal, stop, 0.05))
        watcher.start()
        while not tracker.journal.sent().offsets:
            Delivery(tracker.journal, tmp_path)()
        while sum("system/" in path.read_text() for path in tracker.journal.folder.rglob("*.jsonl")) == 0:
            time.sleep(0.01)
        stop.set()
        watcher.join()
    run = run_of(mlflow_uri, tracker)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.data.metrics.keys()
    steps = [step for step, _ in points(mlflow_uri, tracker, "system/cpu_utilization_percentage")]
    assert len(steps) == len(set(steps))
    assert "| `data/lmdb/latents` | 01234567 |" in run.data.tags["mlflow.note.content"]
    assert "dvc repro train_dmd" in run.data.tags["mlflow.note.content"]


def test_a_record_that_mlflow_refuses_prints_one_line_and_other_records_are_kept(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow refuses models, as an old server does, and refuses a metric with an invalid name."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
    from mlflow.tracking import MlflowClient

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    under(monkeypatch, None)
    monkeypatch.setattr(MlflowClient, "search_logged_models", refuse)
    made = Made(key="k", inputs={}, upstream={"train_dmd": "d"})
    with child_run("evaluate@dmd", "smoke", tmp_path, {}, made, tmp_path) as tracker:
        tracker.log_model("dmd", Path("data/checkpoints/dmd"), "k")
        for step in range(3):
            tracker.log_metrics({"loss": 0.5}, step)
            tracker.log_metrics({"two\nlines": 0.5}, step)
        tracker.log_results({"velocity": 0.25})
    run = run_of(mlflow_uri, tracker)
    assert (run.info.status, run.data.metrics["velocity"]) == ("FINISHED", 0.25)
    assert points(mlflow_uri, tracker, "loss") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("MLflow refuses")]
    assert [line.split(" of ")[0] for line in said] == ["MLflow refuses model", "MLflow refuses metrics"]


def test_a_machine_without_system_metrics_prints_one_line(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.system_metrics.metrics import network_monitor

    def hidden() -> None:
        raise AttributeError("no network here")

    under(monkeypatch, None)
    monkeypatch.setattr(network_monitor, "NetworkMonitor", hidden)
    with child_run("resample", "smoke", tmp_path, {}, MADE, tmp_path) as tracker:
        machine.watch(tracker.journal, threading.Event())
    assert "the run gets no system metrics: no network here" in capsys.readouterr().err
