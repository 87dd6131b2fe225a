"""A parent run is named and described by its params, and the runs of killed processes are ended."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from causvid.harness import journal, parents, tracking
from causvid.harness.delivery import TOKEN
from causvid.harness.mlflow_store import client
from causvid.harness.parents import changed_params, git_tags, run_name
from causvid.harness.processes import Owner
from causvid.harness.sender import send_waiting
from causvid.harness.tracking import Made, child_run

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")

PROFILE = "profile: toy\nseed: 3\ntrain_dmd: {steps: 254, guidance_scale: 1.5, betas: [0, 0.999]}\n"
MADE = Made(key="k", inputs={}, upstream={})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a project whose params are those of the profile ``toy``."""
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    (tmp_path / "profiles").mkdir()
    for name in ("profiles/toy.yaml", "params.yaml"):
        (tmp_path / name).write_text(PROFILE)
    return tmp_path


def git(root: Path, *command: str) -> str:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(root), *author, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def found(uri: str) -> dict[str, Any]:
    """Return the run with each name."""
    api = client(uri)
    return {run.info.run_name: run for run in api.search_runs([e.experiment_id for e in api.search_experiments()])}


def test_a_run_is_named_by_its_profile_its_changed_params_and_its_experiment() -> None:
    assert run_name("laptop", {}, "") == "laptop"
    changes = {"train_dmd.steps": 60, "train_dmd.guidance_scale": 2}
    named = "laptop · train_dmd.steps=60, train_dmd.guidance_scale=2 · blind-bags"
    assert run_name("laptop", changes, "blind-bags") == named
    many = {f"key{index}": index for index in range(8)}
    assert run_name("laptop", many, "") == "laptop · key0=0, key1=1, key2=2 and 5 more"
    assert run_name("laptop", {"captions": "x" * 500}, "") == f"laptop · captions={'x' * 23}…"
    assert len(run_name("p" * 500, {}, "")) <= 250  # MLflow's limit


def test_the_changed_params_are_those_that_differ_from_the_profile(project: Path) -> None:
    assert changed_params("toy", project) == {}
    changed = PROFILE.replace("254", "60").replace("[0, 0.999]", "[0, 0.9]") + "extra: null\n"
    (project / "params.yaml").write_text(changed)
    assert changed_params("toy", project) == {"train_dmd.steps": 60, "train_dmd.betas": [0, 0.9], "extra": None}
    assert changed_params("of another project", project) == {}


def test_a_parent_run_has_the_params_tags_and_commands_to_repeat_it(
    project: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(project, "init", "--quiet")
    git(project, "add", "profiles", "params.yaml")
    git(project, "commit", "--quiet", "-m", "x")
    (project / "params.yaml").write_text(PROFILE.replace("254", "60"))
    monkeypatch.setattr(parents, "dvc_above", lambda: Owner("box", 7, 1007.0))
    monkeypatch.setattr(parents.getpass, "getuser", lambda: "ada")
    monkeypatch.setenv("DVC_EXP_NAME", "blind-bags")
    with child_run("download", "toy", project, {}, MADE, project / ".work/download/k"):
        pass
    run = found(mlflow_uri)["toy · train_dmd.steps=60 · blind-bags"]
    assert run.data.params == {"train_dmd.steps": "60"}
    expected = {
        "profile": "toy",
        "seed": "3",
        "host": "box",
        "dvc_experiment": "blind-bags",
        "mlflow.user": "ada",
        "mlflow.source.name": "dvc exp run --name blind-bags",
        "mlflow.source.git.commit": git(project, "rev-parse", "HEAD"),
        "git_dirty": "true",
    }
    assert expected.items() <= run.data.tags.items()
    assert "dvc exp run -S train_dmd.steps=60\n" in run.data.tags["mlflow.note.content"]


def test_two_experiments_of_one_dvc_process_have_two_runs(
    project: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of DVC runs experiments one after another in the same process."""
    monkeypatch.setattr(parents, "dvc_above", lambda: Owner("box", 7, 1007.0))
    for name in ("first", "second"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with child_run(f"download {name}", "toy", project, {}, MADE, project / f".work/{name}/k"):
            pass
    assert {"toy · first", "toy · second"} <= found(mlflow_uri).keys()


def test_a_change_of_results_or_texts_is_not_a_change_of_code_or_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_tags(tmp_path) == {}
    texts = ["dvc.lock", "ablation/dvc.lock", "reports/dmd/metrics.json", "ablation/evaluate/a/0.json", "docs/a.md"]
    code = ["causvid/models.py", "params.yaml", "dvc.yaml", "profiles/laptop.yaml", "ablation/dvc.yaml"]
    for name in (*texts, *code, "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "x")
    clean = {"mlflow.source.git.commit": git(tmp_path, "rev-parse", "HEAD"), "git_dirty": "false"}
    assert git_tags(tmp_path) == clean
    for name in (*texts, "README.md", "an untracked file"):
        (tmp_path / name).write_text("2")
    assert git_tags(tmp_path) == clean
    for name in code:
        (tmp_path / name).write_text("2")
        assert git_tags(tmp_path)["git_dirty"] == "true", name
        (tmp_path / name).write_text("1")


@contextmanager
def running_stage(project: Path) -> Iterator[int]:
    """Run a stage in another process, and kill the process at the end of the block. Yield the pid."""
    ready, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        ticks = itertools.count(journal.now())  # the last event of the parent run is later than that of the stage
        journal.now = lambda: next(ticks)
        with child_run("train_dmd", "toy", project, {}, MADE, project / ".work/train_dmd/k"):
            os.write(begun, b".")
            time.sleep(600)
        os._exit(1)
    os.read(ready, 1)
    send_waiting(project)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (ready, begun):
            os.close(end)


def test_runs_of_killed_processes_are_ended_by_the_next_sender(
    project: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(parents, "dvc_above", lambda: Owner.of(psutil.Process(dvc.pid)))
    with running_stage(project):
        send_waiting(project)
        assert {run.info.status for run in found(mlflow_uri).values()} == {"RUNNING"}
    send_waiting(project)
    ended = {name: (run.info.status, run.info.end_time) for name, run in found(mlflow_uri).items()}
    assert {status for status, _ in ended.values()} == {"KILLED"}
    assert len(list((project / ".work/parents/runs").rglob("run.json"))) == 1, "dvc may still run other stages"
    dvc.kill()
    dvc.wait()
    send_waiting(project)
    assert {name: (run.info.status, run.info.end_time) for name, run in found(mlflow_uri).items()} == ended
    assert not list((project / ".work/parents/runs").rglob("run.json"))


def test_a_killed_stage_that_continues_is_running_again(
    project: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parents, "dvc_above", lambda: Owner("another host", 7, 1007.0))
    with running_stage(project):
        pass
    send_waiting(project)
    monkeypatch.setattr(parents, "dvc_above", lambda: None)
    with child_run("train_dmd", "toy", project, {}, MADE, project / ".work/train_dmd/k"):
        send_waiting(project)
        assert found(mlflow_uri)["train_dmd"].info.status == "RUNNING"
        assert found(mlflow_uri)["toy"].info.status == "KILLED"


def test_runs_of_other_hosts_are_not_ended(project: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Owner("another host", 1, 0.0)
    monkeypatch.setattr(parents, "dvc_above", lambda: elsewhere)
    monkeypatch.setattr(tracking, "this_process", lambda: elsewhere)
    with running_stage(project):
        pass
    send_waiting(project)
    assert {run.info.status for run in found(mlflow_uri).values()} == {"RUNNING"}
    assert {TOKEN} <= found(mlflow_uri)["toy"].data.tags.keys()
