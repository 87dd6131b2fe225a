"""A process is recognized by its host, pid and start time, and dvc is found above a stage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest

from causvid.harness import processes
from causvid.harness.processes import Owner, dvc_above, this_process


def test_a_process_has_ended_if_its_pid_is_free_a_zombie_or_used_by_a_later_process() -> None:
    assert not this_process().has_ended
    assert this_process()._replace(started=this_process().started - 3600).has_ended
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner.of(psutil.Process(child.pid))
    assert not owner.has_ended
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # the child has ended, and is a zombie
    assert owner.has_ended
    child.communicate()
    assert owner.has_ended


def test_a_process_of_another_host_counts_as_running() -> None:
    assert not Owner(f"not {socket.gethostname()}", 2**22 + 1, 0.0).has_ended


class FakeProcess:
    """Replace a parent process of a stage."""

    def __init__(self, pid: int, command: list[str]) -> None:
        self.pid, self.command = pid, command

    def cmdline(self) -> list[str]:
        return self.command

    def create_time(self) -> float:
        return 1000.0 + self.pid


SHELL = FakeProcess(3, ["/bin/bash", "-c", "make repro"])
NOT_DVC = FakeProcess(5, ["/bin/bash", "dvc-experiments/run-dvc.sh"])
STAGE_DVC = FakeProcess(8, ["/env/bin/python", "/env/bin/dvc", "exp", "exec-run"])
DVC = FakeProcess(7, ["/env/bin/python", "/env/bin/dvc", "repro"])


@pytest.mark.parametrize(
    ("above", "pid"), [([SHELL], None), ([NOT_DVC, SHELL], None), ([SHELL, STAGE_DVC, DVC, SHELL], 7)]
)
def test_the_outermost_dvc_process_is_found(above: list[Any], pid: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        def __init__(self, _: int) -> None:
            pass

        def parents(self) -> list[Any]:
            return above

    monkeypatch.setattr(processes.psutil, "Process", Here)
    assert dvc_above() == (pid and Owner(socket.gethostname(), pid, 1000.0 + pid))
