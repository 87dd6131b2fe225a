"""A flow reads its plan from DVC, and repairs DVC's lock files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.dvc_repo import Stage, read_plan, repair
from tests.unit.flows import tiny_pipeline

VALID_LOCK = """\
schema: '2.0'
stages:
  download:
    cmd: echo
    outs:
    - path: clips.txt
      hash: md5
      md5: 6d7fce9fee471194aa8b5b6e47267f03
      size: 2
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tiny_pipeline.make(tmp_path_factory.mktemp("plan") / "project")
    tiny_pipeline.commit(root)
    return root


def test_stages_have_the_order_and_the_edges_of_dvcs_graph(root: Path) -> None:
    plan = read_plan(root)
    assert [stage.name for stage in plan.stages] == tiny_pipeline.STAGES
    assert {stage.name: stage.upstream for stage in plan.stages} == {
        "download": (),
        "train@a": ("download",),
        "train@b": ("download",),
        "report": ("train@a", "train@b"),
    }


def test_options_of_a_stage_are_read_from_meta(root: Path) -> None:
    download, train, _, report = read_plan(root).stages
    assert (download.gpu, download.timeout, download.retries) == (False, 60, 0)
    assert (train.gpu, train.timeout, train.retries) == (True, 60, 0)
    assert (report.gpu, report.timeout, report.retries) == (False, None, 0)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(["train@b"], ["download", "train@b"]), (["train"], ["download", "train@a", "train@b"]), (["report"], None)],
)
def test_only_upstream_stages_are_added_to_targets(root: Path, targets: list[str], expected: list[str] | None) -> None:
    assert [stage.name for stage in read_plan(root, targets).stages] == (expected or tiny_pipeline.STAGES)


def test_the_error_for_an_unknown_target_lists_the_known_targets(root: Path) -> None:
    with pytest.raises(ValueError, match=r"targets: 'trian' is not a stage; choose from download, train@a"):
        read_plan(root, ["trian"])


def test_read_plan_does_not_change_the_working_directory(root: Path) -> None:
    before = Path.cwd()
    read_plan(root)
    assert Path.cwd() == before


def test_the_plan_of_the_first_pipeline_does_not_include_the_second(tmp_path: Path) -> None:
    root = tiny_pipeline.make(tmp_path / "project")
    tiny_pipeline.add_second(root)
    assert [stage.name for stage in read_plan(root).stages] == tiny_pipeline.STAGES
    assert [stage.name for stage in read_plan(root, ["ablation/dvc.yaml:row@y"]).stages] == [
        "download",
        "ablation/dvc.yaml:params@y",
        "ablation/dvc.yaml:row@y",
    ]


def test_the_plan_of_the_second_pipeline_includes_its_upstream_stages_in_the_first(tmp_path: Path) -> None:
    root = tiny_pipeline.make(tmp_path / "project")
    tiny_pipeline.add_second(root)
    plan = read_plan(root, ["ablation/dvc.yaml"])
    assert [stage.name for stage in plan.stages] == tiny_pipeline.SECOND_STAGES
    row = plan.stages[-1]
    assert row.upstream == ("ablation/dvc.yaml:params@y", "download")
    assert (row.address, row.project) == ("row@y", root / "ablation")
    assert plan.changed
    for folder, target in ((root, "download"), (root / "ablation", "dvc.yaml")):
        subprocess.run([tiny_pipeline.DVC, "repro", "--quiet", target], cwd=folder, check=True)
    assert not read_plan(root, ["ablation/dvc.yaml"]).changed
    assert not (root / "report.txt").exists(), "the root's own stages were run"


def test_the_plan_has_the_status_of_the_stages(tmp_path: Path) -> None:
    root = tiny_pipeline.make(tmp_path / "project")
    assert read_plan(root).changed
    subprocess.run([tiny_pipeline.DVC, "repro", "--quiet"], cwd=root, check=True)
    assert not read_plan(root).changed
    (root / "a.txt").unlink()
    assert {stage.name: stage.settled for stage in read_plan(root).stages} == {
        "download": True,
        "train@a": False,
        "train@b": True,
        "report": False,
    }
    tiny_pipeline.change(root, "download", clips=4)
    assert read_plan(root).changed


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with valid lock files of DVC."""
    root = tmp_path_factory.mktemp("bare")
    (root / "ablation" / ".dvc").mkdir(parents=True)
    write_locks(root)
    return root


def write_locks(root: Path) -> None:
    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    info = {"pid": 1, "cmd": "dvc repro"}
    (root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"read": {"a": [info]}, "write": {"b": info}}))
    (root / "dvc.lock").write_text(VALID_LOCK)
    (root / "ablation" / "dvc.lock").write_text(VALID_LOCK)


def test_repair_does_not_change_valid_files(bare: Path) -> None:
    write_locks(bare)
    assert repair(bare) == []
    assert (bare / "dvc.lock").read_text() == VALID_LOCK
    assert (bare / ".dvc" / "tmp" / "rwlock").is_file()


def test_repair_releases_the_locks_of_zombies_and_of_reused_pids(bare: Path) -> None:
    """DVC regards a zombie as a running process, and in many containers the process with PID 1 reaps no zombies."""
    zombie, alive = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    try:
        deadline = time.monotonic() + 30
        while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        z, a, g = ({"pid": process.pid, "cmd": "dvc repro"} for process in (zombie, alive, gone))
        path = bare / ".dvc" / "tmp" / "rwlock"
        path.write_text(json.dumps({"read": {"x": [z, a], "y": [g]}, "write": {"u": z, "v": a}}))
        assert repair(bare) == []
        assert json.loads(path.read_text()) == {"read": {"x": [a]}, "write": {"v": a}}
        # The pid belongs to another process, which started long after the lock was written.
        os.utime(path, (0, 0))
        assert repair(bare) == []
        assert json.loads(path.read_text()) == {"read": {}, "write": {}}
    finally:
        alive.kill()
        alive.wait()
        zombie.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"read": 3}', "\0\0\0"])
def test_repair_moves_an_incomplete_rwlock(bare: Path, content: str) -> None:
    write_locks(bare)
    (bare / ".dvc" / "tmp" / "rwlock").write_text(content)
    assert repair(bare) == [".dvc/tmp/rwlock"]
    assert not (bare / ".dvc" / "tmp" / "rwlock").exists()
    assert repair(bare) == []


@pytest.mark.parametrize("folder", ["", "ablation"])
@pytest.mark.parametrize("content", ["", "stages: [", "stages: {}", "schema: '2.0'\nstages:\n  a:\n    outs: []\n"])
def test_repair_moves_an_incomplete_dvc_lock_and_keeps_its_content(bare: Path, folder: str, content: str) -> None:
    write_locks(bare)
    path = bare / folder / "dvc.lock"
    path.write_text(content)
    assert repair(bare) == [path.relative_to(bare).as_posix()]
    assert not path.exists()
    assert (bare / folder / ".dvc" / "tmp" / "dvc.lock.broken").read_text() == content


def test_repair_does_not_move_a_dvc_lock_with_a_merge_conflict(bare: Path) -> None:
    write_locks(bare)
    (bare / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n")
    assert repair(bare) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, len(VALID_LOCK)))
def test_after_a_repair_dvc_accepts_a_lock_file_truncated_anywhere(bare: Path, length: int) -> None:
    from dvc.dvcfile import Lockfile
    from dvc.repo import Repo

    write_locks(bare)
    (bare / "dvc.lock").write_text(VALID_LOCK[:length])
    repair(bare)
    (bare / ".dvc" / "config").touch()
    with Repo(str(bare), uninitialized=True) as repo:
        Lockfile(repo, os.fspath(bare / "dvc.lock")).load()


def test_a_project_without_git_is_an_error(tmp_path: Path) -> None:
    root = tiny_pipeline.make(tmp_path / "project")
    shutil.rmtree(root / ".git")
    with pytest.raises(ValueError, match=r"project is not a git repository, which DVC needs: run 'git init' there"):
        read_plan(root)


def test_a_stage_that_dvc_always_regards_as_changed_is_run_before_the_status_is_read(tmp_path: Path) -> None:
    """An ``always_changed`` stage and its downstream stages are settled if the outs of this stage have not changed."""
    root = tiny_pipeline.make(tmp_path / "project")
    text = (root / "dvc.yaml").read_text()
    head = "stages:\n  look:\n    cmd: cat source > seen.txt\n    always_changed: true\n    outs: [seen.txt]\n"
    (root / "dvc.yaml").write_text(
        text.replace("stages:\n", head).replace("    params: [download]\n", "    deps: [seen.txt]\n")
    )
    (root / "source").write_text("1")
    tiny_pipeline.commit(root)
    subprocess.run([tiny_pipeline.DVC, "repro", "--quiet"], cwd=root, check=True)
    refreshed: list[str] = []

    def refresh(stage: Stage) -> None:
        refreshed.append(stage.name)
        subprocess.run([tiny_pipeline.DVC, "repro", "--quiet", "-s", stage.name], cwd=root, check=True)

    assert not read_plan(root, refresh=refresh).changed
    assert refreshed == ["look"]
    assert read_plan(root).changed
    (root / "source").write_text("2")
    plan = read_plan(root, refresh=refresh)
    assert [stage.settled for stage in plan.stages] == [True, False, False, False, False]
    assert read_plan(root, ["look"], refresh=refresh).changed is False
