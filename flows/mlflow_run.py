"""The MLflow run of a flow, the parent of its stages' runs. No failure of MLflow can stop a flow.

A flow imports only ``causvid.harness.environment``. It runs ``causvid.harness.outbox``, which writes to the same
journals as the stages.
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

PARENT_VARIABLE = "CAUSVID_PARENT_RUN_ID"  # read by stages
LIMIT = 300.0  # seconds after which a command of the outbox is stopped


@dataclass
class ParentRun:
    """The run of a flow.

    Attributes:
        environment: Variables that make a stage's run a child of this run; empty if there is no run.
        note: Markdown for the run's page.
    """

    environment: Mapping[str, str]
    note: str = ""


@contextmanager
def parent_run(name: str, profile: str, root: Path, tags: Mapping[str, str]) -> Iterator[ParentRun]:
    """Record the run of the flow ``name``. It is created in MLflow together with the run of its first stage.

    At the end, the flow's page in Prefect gets a link to the run.
    """
    token = _outbox(root, "begin", "--name", name, "--profile", profile, "--tags", json.dumps(dict(tags)))
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
    """Run a command of the outbox and return the last word that it prints; empty if it fails."""
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
