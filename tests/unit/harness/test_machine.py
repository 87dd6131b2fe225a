"""Tests of the load of other processes."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from causvid.harness.machine import OtherLoad

BUSY = "import time\nend = time.process_time() + 60\nwhile time.process_time() < end: pass"


def test_work_of_this_process_is_not_load_of_others_but_work_of_a_child_is() -> None:
    """The bounds are relative to CPU times, because other programs may use this machine during the test."""
    load, before = OtherLoad(), psutil.Process().cpu_times()
    started = time.perf_counter()
    while time.perf_counter() - started < 1.0:
        pass
    after, seconds = psutil.Process().cpu_times(), time.perf_counter() - started
    own = after.user + after.system - before.user - before.system
    assert load.cores() <= (psutil.cpu_count() or 1) - own / seconds + 0.1
    with subprocess.Popen([sys.executable, "-c", BUSY]) as child:
        try:
            other, begun, used = OtherLoad(), time.perf_counter(), psutil.Process(child.pid).cpu_times()
            time.sleep(1.0)
            now = psutil.Process(child.pid).cpu_times()
            assert other.cores() >= (now.user - used.user) / (time.perf_counter() - begun) - 0.1
        finally:
            child.kill()
