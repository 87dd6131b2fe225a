"""Set environment variables that libraries read when they are imported.

This module imports only the standard library, so that every command can import this module first.
"""

from __future__ import annotations

import os

# These variables stop libraries from sending usage data, and typer from formatting tracebacks.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TYPER_STANDARD_TRACEBACK": "1",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SPINS = "1000"  # OpenMP spins for about 0.01 ms; docs/log.md shows measurements on an idle and a busy machine


def prepare() -> None:
    """Set the variables for this process and its child processes. Variables that the user has set are unchanged.

    No proxy is used for loopback addresses, because a proxy cannot reach the servers of this project on loopback.

    An OpenMP thread that waits for other threads spins for a short time and then sleeps. On a busy machine, a longer
    spin would use the core that the other threads need. On an idle machine, a thread that sleeps immediately would wake
    up too slowly.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    bypass: dict[str, None] = {}  # addresses without duplicates, in order; libraries read one of two spellings
    for name in ("no_proxy", "NO_PROXY"):
        bypass |= dict.fromkeys(part for host in os.environ.get(name, "").split(",") if (part := host.strip()))
    hosts = "*" if "*" in bypass else ",".join(bypass | dict.fromkeys(LOOPBACK))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts
