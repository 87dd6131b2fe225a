"""The context of a stage computes its key, publishes its metrics, and reports a mistake of the user in one sentence."""

from __future__ import annotations

import errno
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causvid import params as params_file
from causvid.harness import mlflow_store, outputs
from causvid.harness.progress import progress
from causvid.harness.stage import StageRun, stage_run
from causvid.runtime.shapes import VideoShape

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str) -> Path:
    """Return the root of a project with the smoke params, one stage and one input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "toy.py").write_text("x = 1\n")
    (tmp_path / "in").write_text("input")
    params_file.use("smoke", tmp_path / "params.yaml")
    return tmp_path


def run_stage(body: Callable[[StageRun], None], **changes: Any) -> None:
    asked: dict[str, Any] = {
        "params": Path("params.yaml"),
        "sections": {"seed": int, "video": VideoShape, "sample.crf": int},
        "inputs": (Path("in"),),
        "metrics": Path("reports/toy/metrics.json"),
        **changes,
    }
    with stage_run("toy", **asked) as run:
        body(run)


def last_run(uri: str) -> Any:
    api = mlflow_store.client(uri)
    experiment = api.get_experiment_by_name("causvid/smoke")
    assert experiment is not None
    return next(r for r in api.search_runs([experiment.experiment_id]) if "dvc_stage" in r.data.tags)


def test_a_stage_reads_its_sections_publishes_and_reports(project: Path, mlflow_uri: str) -> None:
    def body(run: StageRun) -> None:
        assert run.params["video"] == VideoShape(height=32, width=32, frames=21, fps=8)
        assert run.params["sample.crf"] == 10
        assert run.compute.workers == 1
        (run.work / "out").write_text("made")
        run.publish(run.work / "out", Path("data/out"))
        run.report({"clips": 3, "note": "words are for the file"})
        run.report({"psnr_db": 20.5})

    run_stage(body, item="dmd")
    assert (project / "data" / "out").read_text() == "made"
    metrics = json.loads((project / "reports" / "toy" / "metrics.json").read_text())
    key = metrics.pop("key")
    assert metrics == {"clips": 3, "note": "words are for the file", "psnr_db": 20.5}
    assert (project / ".work" / "toy" / key).is_dir()
    run = last_run(mlflow_uri)
    assert run.info.run_name == run.data.tags["dvc_stage"] == "toy@dmd"
    assert run.data.tags["key"] == key
    assert {"clips": 3.0, "psnr_db": 20.5}.items() <= run.data.metrics.items()
    assert run.data.metrics["stage_seconds"] > 0
    assert run.data.params["video.fps"] == "8"


def test_an_unchanged_stage_has_the_same_key_and_a_changed_stage_another_key(project: Path) -> None:
    keys = []

    def body(run: StageRun) -> None:
        keys.append(run.origin.key)

    run_stage(body)
    run_stage(body)
    run_stage(body, item="other")
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("workers: 1", "workers: 2"), encoding="utf-8")
    run_stage(body)  # the key does not depend on the section compute
    Path("params.yaml").write_text(text.replace("  fps: 8", "  fps: 9"), encoding="utf-8")
    run_stage(body)
    assert keys[0] == keys[1] == keys[3]
    assert len(set(keys)) == 3


def raising(error: BaseException) -> Callable[[StageRun], None]:
    def body(_: StageRun) -> None:
        raise error

    return body


def assert_one_sentence(stop: pytest.ExceptionInfo[SystemExit], words: str) -> None:
    """Assert that the stage ends by ``sys.exit(sentence)`` with one sentence, exit code 1 and no traceback."""
    assert isinstance(stop.value.code, str)
    assert stop.value.code.startswith("toy: ")
    assert words in stop.value.code
    assert "\n" not in stop.value.code.strip()


def test_checksums_of_dvc_lock_count_if_dvc_runs_the_stage(
    project: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = "stages:\n  before:\n    outs:\n    - {{path: in, md5: {}}}\n    - {{path: before.json, md5: b}}\n"
    (project / "before.json").write_text('{"key": "k0"}')

    def key() -> str:
        run_stage(lambda run: None)
        return str(json.loads((project / "reports/toy/metrics.json").read_text())["key"])

    without_dvc = key()
    (project / "dvc.lock").write_text(lock.format("aa"))
    assert key() == without_dvc  # without DVC, the content of the input decides
    assert last_run(mlflow_uri).data.tags["upstream"] == "{}"
    monkeypatch.setenv("DVC_STAGE", "toy")
    under_dvc = key()
    assert json.loads(last_run(mlflow_uri).data.tags["upstream"]) == {"before": "k0"}
    monkeypatch.setenv("DVC_ROOT", str(project))
    (project / "in").write_text("other")
    assert key() == under_dvc
    monkeypatch.setenv("DVC_ROOT", str(project / "ablation"))  # the other project does not verify this dvc.lock
    assert key() not in (without_dvc, under_dvc)
    monkeypatch.setenv("DVC_ROOT", str(project))
    (project / "dvc.lock").write_text(lock.format("bb"))
    assert key() != under_dvc


def test_a_finished_stage_prints_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(lambda run: run.report({"clips": 3}), item="dmd", headline=("{clips} clips",))
    assert re.search(r"^toy@dmd: 3 clips, \d+\.\d s", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_stage_prints_how_to_continue_and_has_the_exit_code_of_the_signal(
    project: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    list(progress([1], total=1, what="finished work"))
    with pytest.raises(SystemExit) as stop:
        run_stage(raising(outputs.Stopped(number)))
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err.endswith("toy: stopped; run the same command again to continue\n")
    assert not Path("reports").exists()


def test_a_mistake_of_the_user_is_one_sentence(project: Path, mlflow_uri: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run_stage(raising(ValueError("video.frames is 20; use 17 or 21")))
    assert_one_sentence(stop, "video.frames is 20; use 17 or 21")
    assert not Path("reports").exists()
    assert last_run(mlflow_uri).info.status == "FAILED"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        # These errors of the libraries that write most files were observed on a full file system of 1 MB.
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        type("SafetensorError", (Exception,), {})(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        type("DiskError", (Exception,), {})("mdb_txn_commit: No space left on device"),
        type("Error", (Exception,), {})("mdb_txn_commit: Input/output error"),
    ],
    ids=["errno", "quota", "torch.save", "safetensors", "lmdb", "lmdb, a short write"],
)
def test_a_full_disk_is_one_sentence(project: Path, error: Exception) -> None:
    with pytest.raises(SystemExit) as stop:
        run_stage(raising(error))
    assert_one_sentence(stop, "the disk is full")
    assert "run the same command again" in str(stop.value.code)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("ours"), FloatingPointError("nan")]
)
def test_other_errors_keep_their_traceback(project: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        run_stage(raising(error))


def test_the_same_stage_in_two_processes_is_one_sentence(project: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run_stage(lambda _: run_stage(raising(RuntimeError("never reached"))))
    assert_one_sentence(stop, "another process does the same work")


def test_an_unknown_key_of_params_stops_the_stage_before_it_starts(project: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("  fps: 8", "  fpz: 8"), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run_stage(raising(RuntimeError("never reached")))
    assert_one_sentence(stop, "video.fpz: unknown key (found 8), did you mean video.fps? (line ")
    assert not (project / ".work").exists()


def test_a_missing_key_of_a_free_form_section_is_named(project: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("    scale_factor_spatial: 8\n", ""), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run_stage(raising(RuntimeError("never reached")), sections={"model.vae.scale_factor_spatial": int})
    assert_one_sentence(stop, "model.vae.scale_factor_spatial")


def test_nan_is_refused_in_metrics(project: Path) -> None:
    with pytest.raises(SystemExit):
        run_stage(lambda run: run.report({"psnr_db": float("nan")}))
    assert not Path("reports").exists()
