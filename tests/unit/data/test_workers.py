"""run_killable yields a result or a reason for every job, even if the job kills its process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from causvid.data.workers import Lost, run_killable

MEMORY = 2**30


def _work(job: str) -> str:
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "hang":  # the job holds the interpreter lock, as a decoder in C can
        ctypes.PyDLL(None).sleep(60)
    if job == "gorge":
        bytearray(2 * MEMORY)
    if job == "raise":
        raise OSError(28, "No space left on device")
    return f"{job}!"


def test_a_crash_a_hang_and_too_much_memory_each_lose_one_job() -> None:
    jobs = ["a", "hang", "b", "crash", "c", "gorge", "d", "e"]
    results = dict(run_killable(_work, jobs, workers=2, seconds=1.5, memory=MEMORY))
    assert results.keys() == set(jobs)
    assert {job: results[job] for job in "abcde"} == {job: f"{job}!" for job in "abcde"}
    assert results["hang"] == Lost(code="timeout", reason="the work took more than 1.5 seconds and was stopped")
    assert results["crash"] == Lost(code="crashed", reason=f"the worker process died (exit code {-signal.SIGSEGV})")
    assert results["gorge"] == Lost(code="memory", reason="the work needed more than 1 GiB of memory")
    assert not multiprocessing.active_children()


def test_an_exception_is_raised_in_the_parent_and_ends_the_workers() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        list(run_killable(_work, ["a", "raise", "hang", "hang"], workers=2, seconds=30, memory=MEMORY))
    assert caught.value.errno == 28
    assert not multiprocessing.active_children()


def test_without_jobs_no_worker_starts() -> None:
    assert list(run_killable(_work, [], workers=2, seconds=1, memory=MEMORY)) == []


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from causvid.data.workers import run_killable\n"
        "if __name__ == '__main__':\n"
        "    for job, _ in run_killable(abs, [1, 2, 3], workers=1, seconds=30, memory=2**30):\n"
        "        print(job, flush=True)\n"
        "        time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "1\n"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert workers
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
