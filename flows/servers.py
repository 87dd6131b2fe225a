"""``make ui``: run the servers of Prefect and MLflow on loopback, and a worker for Prefect's deployments.

All users of this machine, and all web pages in their browsers, can send requests to a loopback address. Prefect
therefore requires a password and rejects requests from other origins. MLflow answers only requests to its host name.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from flows.dvc_task import bound

POOL = "causvid"
HOST = "127.0.0.1"
LOGS = Path(".prefect")  # folder of the servers' output, relative to the project
READY = 180.0  # seconds after which a server that does not answer has failed
GRACE = 10.0  # seconds from SIGTERM to SIGKILL


def main(
    prefect_port: Annotated[int, typer.Option(help="port of Prefect's page")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="port of MLflow's page")] = 5000,
) -> None:
    """Serve the pages of Prefect and MLflow, and run deployments, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    root = Path.cwd()
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    secret = password(root)
    settings = {
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    environment = {**os.environ, **settings}
    names = f"{HOST}:{mlflow_port},localhost:{mlflow_port}"
    artifacts = (root / "mlartifacts").as_uri()  # MLflow's default folder; in a path, MLflow would decode escapes
    with ExitStack() as running:

        def run(*command: str) -> Server:
            return running.enter_context(process(command, environment, root / LOGS / f"{command[0]}-{command[1]}.log"))

        first = run("prefect", "server", "start", "--host", HOST, "--port", str(prefect_port))
        uri, table = mlflow_store(environment)
        second = run(
            *("mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"),
            *("--backend-store-uri", uri, "--allowed-hosts", names),
            *("--artifacts-destination", os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", artifacts)),
        )
        print("starting the servers of Prefect and MLflow", flush=True)
        wait_for(first, f"{prefect}/api/health", secret)
        wait_for(second, f"{mlflow}/health", "")
        print(panel(f"{prefect}/runs", f"{mlflow}{table}", root, secret), flush=True)
        deploy(environment)
        third = run("prefect", "worker", "start", "--pool", POOL)
        try:
            while all(server.child.poll() is None for server in (first, second, third)):
                time.sleep(0.5)
            stopped = next(server for server in (first, second, third) if server.child.poll() is not None)
            sys.exit(f"a server has ended; see {stopped.log}")
        except KeyboardInterrupt:
            print("stopping", flush=True)
        finally:
            for server in (third, second, first):  # all processes end in parallel, because each one takes seconds
                end(server.child, signal.SIGTERM)


def panel(prefect: str, mlflow: str, root: Path, secret: str) -> str:
    """Return the lines that ``make ui`` prints: three links, the password, the logs and how to stop."""
    report = root / "reports" / "index.html"
    lines = {
        "Prefect, flow runs": prefect,
        "Prefect's password": secret,
        "MLflow, runs": mlflow,
        "Report": report.as_uri() if report.is_file() else "does not exist yet; 'make repro' writes it",
        "Logs of the servers": f"{LOGS}/*.log",
        "To stop": "Ctrl-C",
    }
    return "\n".join(f"{name:<21}{value}" for name, value in lines.items())


def mlflow_store(environment: Mapping[str, str]) -> tuple[str, str]:
    """Create MLflow's store if it does not exist. Return its URI, and the address of the table of runs on its server.

    If the server and a stage created the store at the same time, one of them would fail.
    """
    command = [sys.executable, "-m", "causvid.harness.mlflow_store"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the store for MLflow's server cannot be created:\n{done.stderr}")
    uri, address = done.stdout.splitlines()[-2:]
    return uri, address


def password(root: Path) -> str:
    """Return USER:PASSWORD for Prefect from ``root``/.prefect/auth, a file that only the owner can read.

    If the file does not exist, it is created. ``make flow`` reads the same file.
    """
    path = root / ".prefect" / "auth"
    path.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"causvid:{secrets.token_urlsafe(24)}")
    return path.read_text()


def deploy(environment: Mapping[str, str]) -> None:
    """Create or update the work pool and the deployments that prefect.yaml lists."""
    for command in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--all"],
    ):
        done = subprocess.run([tool("prefect"), *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"prefect {' '.join(command)} failed:\n{done.stdout}{done.stderr}")


@dataclass(frozen=True)
class Server:
    """A server process, and the file with its output."""

    child: subprocess.Popen[bytes]
    log: Path


@contextmanager
def process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Run a program of this environment in a new session, until the end of the block or of this process.

    Its output is written to ``log``, which is replaced.
    """
    arguments = bound([tool(command[0]), *command[1:]])
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            arguments, env=environment, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        ) as child,
    ):
        try:
            yield Server(child, log)
        finally:
            end(child, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            end(child, signal.SIGKILL)


def end(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to ``child`` and its descendants, if any of these processes is still running."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def wait_for(server: Server, url: str, secret: str) -> None:
    """Wait until ``url`` answers. Exit with an error if ``server`` ends or does not answer within ``READY`` seconds."""
    user, _, word = secret.partition(":")
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline and server.child.poll() is None:
        with suppress(httpx2.HTTPError):
            if httpx2.get(url, auth=(user, word), timeout=5).status_code == httpx2.codes.OK:
                return
        time.sleep(0.2)
    sys.exit(f"{url} does not answer (is the port in use?); see {server.log}")


def tool(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    typer.run(main)
