"""Environment variables that have to be set before the libraries that read them are imported.

This module imports nothing but the standard library, so that every command can import it first.
"""

from __future__ import annotations

import os

# No library of ours sends usage data, and typer leaves tracebacks to Python.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TYPER_STANDARD_TRACEBACK": "1",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SPINS = "1000"  # about 0.01 ms; docs/log.md has the measurements on an idle and on a busy machine


def prepare() -> None:
    """Set the variables for this process and those that it starts. A value that the user has set stays.

    A proxy is never used for a loopback address: the servers there are ours, and a proxy cannot reach them.

    An OpenMP thread that waits for others spins for a short time and then sleeps. If another process is busy, a thread
    that spins for longer takes the core from the thread that it waits for. On an idle machine, a thread that sleeps at
    once is slow to wake up.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    bypass: dict[str, None] = {}  # in the order of their first appearance; libraries read one spelling or the other
    for name in ("no_proxy", "NO_PROXY"):
        bypass |= dict.fromkeys(part for host in os.environ.get(name, "").split(",") if (part := host.strip()))
    hosts = "*" if "*" in bypass else ",".join(bypass | dict.fromkeys(LOOPBACK))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts
