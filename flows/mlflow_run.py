"""Record the MLflow run of a flow, which is the parent of its stages' runs. A failure of MLflow cannot stop a flow.

A flow imports only ``causvid.harness.environment``. To record its run, the flow starts ``causvid.harness.outbox`` as a
subprocess. The subprocess writes to the same journals as the stages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact

PARENT_VARIABLE = "CAUSVID_PARENT_RUN_ID"  # environment variable that stages read
LIMIT = 300.0  # seconds after which a command of the outbox is stopped


@dataclass
class ParentRun:
    """The MLflow run of a flow.

    Attributes:
        environment: Environment variables of the stages, whose runs become children of this run; empty without a run.
        note: Markdown text on the page of the run.
    """

    environment: Mapping[str, str]
    note: str = ""


@contextmanager
def parent_run(name: str, root: Path, tags: Mapping[str, str]) -> Iterator[ParentRun]:
    """Record the run of the flow ``name``. This run is created in MLflow together with the run of the first stage.

    At the end, a link to the run is added to the flow's page in Prefect.
    """
    token = _outbox(root, "begin", "--name", name, "--tags", json.dumps(dict(tags)))
    parent, status = ParentRun({PARENT_VARIABLE: token} if token else {}), "KILLED"
    try:
        yield parent
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if token:
            run_id = _outbox(root, "end", "--token", token, "--status", status, "--note", parent.note)
            if run_id and status != "KILLED":  # a flow that is being cancelled cannot create artifacts
                link = f"{_page()}/#/runs/{run_id}"
                create_link_artifact(link, key="mlflow", link_text=f"This {name} in MLflow ('make ui')")


def _outbox(root: Path, *arguments: str) -> str:
    """Run a command of the outbox, and return the last word of its output. Return "" if the command fails."""
    command = [sys.executable, "-m", "causvid.harness.outbox", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        get_run_logger().warning("MLflow: %s", error)
        return ""
    if done.stderr.strip():
        get_run_logger().warning("%s", done.stderr.strip().splitlines()[-1])
    return (done.stdout.split() or [""])[-1] if done.returncode == 0 else ""


def _page() -> str:
    """Return the URL of MLflow's page: the server in MLFLOW_TRACKING_URI, or the server of ``make ui``."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
