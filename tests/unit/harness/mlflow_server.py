"""Start and stop MLflow's server in tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """Return a port of this machine on which no process listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(uri: str, port: int, *options: str) -> subprocess.Popen[bytes]:
    """Start a server of the store ``uri`` in a new process group. The server answers after some seconds."""
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [*command, "--backend-store-uri", uri, *options], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a server answers."""
    while True:
        assert process.poll() is None, "the server has ended"
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.1)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def serving(uri: str, port: int, *options: str) -> Iterator[None]:
    """Run a server that answers as long as the context is open."""
    process = start(uri, port, *options)
    try:
        wait_for(process, port)
        yield
    finally:
        kill(process)
