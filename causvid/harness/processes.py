"""Identify processes, so that a later process can find out whether they have ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil

CLOCK_STEP = 60.0  # seconds by which the clock of the machine may be set while a process runs


class Owner(NamedTuple):
    """The process of a run: host, pid, and start time in seconds since 1970. A pid alone is used again."""

    host: str
    pid: int
    started: float

    @classmethod
    def of(cls, process: psutil.Process) -> Owner:
        """Identify a running process of this host."""
        return cls(socket.gethostname(), process.pid, round(process.create_time(), 2))

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended. The processes of other hosts are unknown, and count as running."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > CLOCK_STEP
        except psutil.NoSuchProcess:
            return True


def this_process() -> Owner:
    """Identify this process."""
    return Owner.of(psutil.Process(os.getpid()))


def dvc_above() -> Owner | None:
    """Identify the outermost dvc process that started this process; None without dvc."""
    above = [p for p in psutil.Process(os.getpid()).parents() if any(Path(part).name == "dvc" for part in _command(p))]
    return Owner.of(above[-1]) if above else None


def _command(process: psutil.Process) -> list[str]:
    return process.cmdline()[:3]
