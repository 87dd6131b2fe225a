"""The task of a DVC stage reports outcome and output, obeys timeout and cancellation, and locks the GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from asyncio import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from flows import dvc_task
from flows.dvc_repo import Stage, read_plan, repair
from flows.dvc_task import Record, StageFailed, StageTimedOut, classify, command, push, run_dvc
from tests.unit.flows import tiny_pipeline

# This stage ignores interrupts, and writes its pid and the pid of its child to a file.
STUBBORN = "trap '' INT TERM; sleep 600 & echo $$ $! > ../pids; wait; sleep 600"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_pipeline.make(tmp_path / "project")


@pytest.fixture
def downloaded(root: Path) -> Path:
    """Return a project in which ``train`` can run, because the outs of ``download`` exist."""
    (root / "clips.txt").write_text("3\n")
    return root


def stage(root: Path, name: str) -> Stage:
    return next(stage for stage in read_plan(root).stages if stage.name == name)


def run(root: Path, name: str, log: list[str] | None = None, **changes: object) -> Record:
    changed = replace(stage(root, name), **changes)  # type: ignore[arg-type]
    sink = [] if log is None else log
    return run_dvc(changed, environment={}, log=sink.append, stop=threading.Event())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_dead(pids: list[int]) -> None:
    """Wait until all killed processes have ended."""
    deadline = time.monotonic() + 5
    while running := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"{running} still run"
        time.sleep(0.05)


def wait_for(path: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Running stage 'train@a':", "ran"),
        ("Stage 'train@a' is cached - skipping run, checking out outputs", "restored"),
        ("Stage 'train@a' didn't change, skipping", "unchanged"),
        ("Verifying outputs in frozen stage: 'train@a'", "unchanged"),
        ("Running stage 'train@b':", None),
        ("> echo Running stage 'train@a':", None),
        ("", None),
    ],
)
def test_classify_recognises_only_dvcs_lines_about_the_stage(line: str, expected: str | None) -> None:
    assert classify(line, "train@a") == expected


def test_the_command_is_an_argument_list_with_the_dvc_of_this_environment() -> None:
    assert command("push", "train; rm -rf /")[-4:] == [tiny_pipeline.DVC, "--wait-for-lock", "push", "train; rm -rf /"]


def test_a_stage_is_run_then_unchanged_then_restored(root: Path) -> None:
    log: list[str] = []
    first = run(root, "download", log)
    assert (first.stage, first.outcome) == ("download", "ran")
    assert (root / "clips.json").read_text() == '{"clips":3}\n'
    assert first.seconds > 0
    assert "progress" in log
    assert run(root, "download").outcome == "unchanged"
    tiny_pipeline.change(root, "download", clips=5)
    assert run(root, "download").outcome == "ran"
    assert (root / "clips.json").read_text() == '{"clips":5}\n'
    tiny_pipeline.change(root, "download", clips=3)
    back = run(root, "download")
    assert (back.outcome, (root / "clips.json").read_text()) == ("restored", '{"clips":3}\n')


def test_push_sends_outs_to_a_default_remote(root: Path, tmp_path: Path) -> None:
    assert not stage(root, "download").has_remote
    remote = tmp_path / "remote"
    (root / ".dvc" / "config").write_text(f"[core]\n    remote = here\n['remote \"here\"']\n    url = {remote}\n")
    assert stage(root, "download").has_remote
    run(root, "download")
    quiet: dict[str, Any] = {"environment": {}, "log": lambda _: None, "stop": threading.Event()}
    assert push(stage(root, "download"), **quiet)
    assert "3\n" in [file.read_text() for file in remote.rglob("*") if file.is_file()]
    (root / ".dvc" / "config").write_text("[core]\n    remote = here\n['remote \"here\"']\n    url = /proc/none\n")
    assert not push(stage(root, "download"), **quiet)


def test_run_dvc_does_not_run_upstream_stages(root: Path) -> None:
    with pytest.raises(StageFailed, match=r"clips\.txt"):
        run(root, "train@a")
    assert not (root / "clips.txt").exists()


def test_lines_are_forwarded_while_the_stage_runs(downloaded: Path) -> None:
    tiny_pipeline.change(
        downloaded, "train", cmd='python -c \'import time; print("early"); time.sleep(2); print("late")\''
    )
    seen: dict[str, float] = {}
    run_dvc(
        stage(downloaded, "train@a"),
        environment={},
        log=lambda line: seen.update({line: time.monotonic()}),
        stop=threading.Event(),
    )
    assert seen["late"] - seen["early"] > 1.5


def test_the_environment_reaches_the_stage_with_our_python_first(downloaded: Path) -> None:
    tiny_pipeline.change(
        downloaded, "train", cmd="python -c 'import sys, os; print(sys.prefix, os.environ[\"ABOVE\"])'"
    )
    log: list[str] = []
    run_dvc(stage(downloaded, "train@a"), environment={"ABOVE": "run 7"}, log=log.append, stop=threading.Event())
    assert f"{Path(tiny_pipeline.DVC).parents[1]} run 7" in log


def test_the_error_of_a_failed_stage_has_the_last_lines(downloaded: Path) -> None:
    tiny_pipeline.change(downloaded, "train", cmd="seq 100; echo the disk is full >&2; exit 3")
    with pytest.raises(StageFailed) as caught:
        run(downloaded, "train@a")
    assert caught.value.reason == "stage train@a failed (dvc's exit code 255)"
    lines = str(caught.value).splitlines()
    assert "the disk is full" in lines
    assert "exited with 3" in lines[-1]
    assert len(lines) == dvc_task.TAIL + 1
    assert "100" in lines
    assert "50" not in lines


def test_the_error_of_a_failed_stage_mentions_a_full_disk(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a disk is full, DVC may report "No possible cache link types"."""
    tiny_pipeline.change(downloaded, "train", cmd="exit 3")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=4095))
    with pytest.raises(StageFailed) as caught:
        run(downloaded, "train@a")
    assert caught.value.reason == "stage train@a failed (dvc's exit code 255, the disk is full)"


def test_a_timeout_kills_all_processes_of_the_stage(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_task, "GRACE", 0.5)
    tiny_pipeline.change(downloaded, "train", cmd=STUBBORN)
    started = time.monotonic()
    with pytest.raises(StageTimedOut, match=r"stage train@a exceeded its timeout of 3 s"):
        run(downloaded, "train@a", timeout=3)
    assert time.monotonic() - started < 10
    assert_dead(wait_for(downloaded.parent / "pids"))


def test_a_cancelled_stage_is_killed_and_can_be_run_again(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_task, "GRACE", 0.5)
    tiny_pipeline.change(downloaded, "train", cmd=STUBBORN)
    stop = threading.Event()

    def stop_when_it_runs() -> None:
        wait_for(downloaded.parent / "pids")
        stop.set()

    killer = threading.Thread(target=stop_when_it_runs)
    killer.start()
    with pytest.raises(CancelledError):
        run_dvc(stage(downloaded, "train@a"), environment={}, log=lambda _: None, stop=stop)
    killer.join()
    assert_dead(wait_for(downloaded.parent / "pids"))
    with pytest.raises(CancelledError, match="not started"):
        run_dvc(stage(downloaded, "train@a"), environment={}, log=lambda _: None, stop=stop)
    repair(downloaded)
    tiny_pipeline.change(downloaded, "train", cmd="true")
    assert run(downloaded, "train@a").outcome == "ran"


def test_a_process_that_survives_dvc_does_not_delay_the_result(downloaded: Path) -> None:
    tiny_pipeline.change(downloaded, "train", cmd="setsid sleep 20 & echo $! > ../pids")
    started = time.monotonic()
    assert run(downloaded, "train@a").outcome == "ran"
    assert time.monotonic() - started < 10
    for pid in wait_for(downloaded.parent / "pids"):
        os.kill(pid, signal.SIGKILL)


def test_a_command_whose_parent_has_ended_does_not_start() -> None:
    *start, parent, program = dvc_task.bound(["/bin/echo"])
    assert parent == str(os.getpid())
    started = subprocess.run([*start, parent, program, "here"], capture_output=True, text=True, check=True)
    assert started.stdout == "here\n"
    orphan = subprocess.run([*start, "1", program, "here"], capture_output=True, text=True, check=False)
    assert (orphan.returncode, orphan.stdout) == (1, "")
    assert "the parent process has ended" in orphan.stderr


def test_dvc_is_killed_with_the_flow(downloaded: Path) -> None:
    """A SIGKILL of the flow also kills dvc. A real stage asks the kernel to be killed together with dvc."""
    tiny_pipeline.change(downloaded, "train", cmd="echo $PPID > ../pids; exec sleep 600")
    code = (
        "import threading, pathlib\nfrom flows.dvc_repo import read_plan\nfrom flows.dvc_task import run_dvc\n"
        "root = pathlib.Path.cwd()\nstage = read_plan(root, ['train@a']).stages[-1]\n"
        "run_dvc(stage, environment={}, log=print, stop=threading.Event())\n"
    )
    python_path = str(Path(dvc_task.__file__).parents[1])
    flow = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=downloaded,
        env=os.environ | {"PYTHONPATH": python_path},
        stdout=subprocess.DEVNULL,
    )
    (dvc,) = wait_for(downloaded.parent / "pids")
    group = os.getpgid(dvc)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    assert_dead([dvc])
    os.killpg(group, signal.SIGKILL)  # the process of sleep survives dvc


HOLDER = """
import sys, threading, time
from flows import dvc_task
from tests.unit.flows.test_dvc_task import stage
from pathlib import Path
dvc_task.has_gpu = lambda: True
with dvc_task.turn(stage(Path(sys.argv[1]), "train@a"), log=print, stop=threading.Event()):
    print("held", flush=True)
    time.sleep(600)
"""


def test_gpu_stages_run_one_at_a_time_and_a_killed_flow_releases_the_lock(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_task, "has_gpu", lambda: True)
    monkeypatch.setattr(dvc_task.tempfile, "tempdir", str(tmp_path))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    lines: list[str] = []
    stop = threading.Event()

    def log(line: str) -> None:
        lines.append(line)
        stop.set()

    with dvc_task.turn(stage(root, "download"), log=log, stop=stop):  # the stage download needs no GPU
        assert lines == []
    with pytest.raises(CancelledError), dvc_task.turn(stage(root, "train@b"), log=log, stop=stop):
        pass
    assert lines == ["train@b waits for the GPUs: a stage of another flow on this machine uses them"]
    holder.kill()
    holder.wait()
    with dvc_task.turn(stage(root, "train@b"), log=lines.append, stop=threading.Event()):
        assert len(lines) == 1
    holder.stdout.close()
