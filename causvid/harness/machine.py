"""Observe the machine during a stage: system metrics of the run, and the load of other processes.

The system metrics (CPU, memory, disk, network, GPU) are the metrics ``system/...`` of the run.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import Any

import psutil

from causvid.harness.journal import Journal, now

SECONDS = 10.0  # number of seconds between two rows


def watch(journal: Journal, stop: threading.Event, seconds: float = SECONDS) -> None:
    """Add a row of metrics to ``journal`` every ``seconds`` seconds, until ``stop`` is set.

    The step of a row is the number of intervals since the start of the run. In a resumed run, the steps continue.
    """
    try:
        monitors, began = _monitors(), journal.header.run.started
        while True:
            for monitor in monitors:
                monitor.collect_metrics()
            if stop.wait(seconds):
                return
            values = {name: value for monitor in monitors for name, value in monitor.aggregate_metrics().items()}
            for monitor in monitors:
                monitor.clear_metrics()
            row = {f"system/{name}": float(value) for name, value in values.items()}
            journal.append("metrics", values=row, step=int((now() - began) / 1000 / seconds))
    except FileNotFoundError:  # the stage has ended, and another process has sent the journal
        return
    except Exception as error:  # for example in a container without access to network or disk counters
        print(f"the run gets no system metrics: {error}", file=sys.stderr, flush=True)


def _monitors() -> list[Any]:
    """Return MLflow's monitors for the hardware of this machine."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for gpus in (GPUMonitor, ROCMMonitor):
        with suppress(Exception):  # there is no GPU of this vendor, or no library for the GPU
            return [*monitors, gpus()]
    return monitors


class OtherLoad:
    """The CPU time that other processes use from the creation of the object on."""

    def __init__(self) -> None:
        self.start = self._seconds()

    def cores(self) -> float:
        """Return the mean number of cores that processes other than this one have used."""
        wall, busy = (after - before for after, before in zip(self._seconds(), self.start, strict=True))
        return max(0.0, busy / wall) if wall > 0 else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """Return the time, and the CPU seconds of all processes without those of this process."""
        system, own = psutil.cpu_times(), psutil.Process().cpu_times()
        # On Linux, the time of guests is also part of the user time.
        return time.perf_counter(), system.user + system.system + getattr(system, "nice", 0.0) - own.user - own.system
