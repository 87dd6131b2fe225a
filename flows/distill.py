"""The whole pipeline as one Prefect flow: every stage of dvc.yaml in the order of DVC's own graph.

``python -m flows.distill [STAGE ...]`` runs it, with the server of PREFECT_API_URL or without one.
"""

from __future__ import annotations

import base64
import mimetypes
import os
import re
from pathlib import Path
from typing import Annotated

# Prefect looks at it when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "true")

import typer
from dvc.repo import Repo
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_flow import bring_up_to_date, run_as_command
from flows.dvc_task import Record

IMAGE_LIMIT = 1_000_000  # bytes; Prefect keeps artifacts in its database


# One worker: the graph is nearly a line, and DVC does not write dvc.lock atomically.
@flow(name="distill", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def distill(targets: list[str] | None = None) -> State[list[Record]]:
    """Bring the stages ``targets`` (none = the whole pipeline) and what they depend on up to date."""
    root = Path(Repo.find_root())
    state = bring_up_to_date("distill", root, targets)
    report = root / "reports" / "report.md"
    if state.is_completed() and report.is_file():
        create_markdown_artifact(key="report", markdown=inline_images(report.read_text("utf-8"), report.parent))
    return state


def inline_images(markdown: str, folder: Path) -> str:
    """``markdown`` with its image files (relative to ``folder``) as data: Prefect's page cannot open our files."""

    def inline(match: re.Match[str]) -> str:
        path = folder / match["path"]
        if not path.is_file() or path.stat().st_size > IMAGE_LIMIT:
            return match[0]
        data = base64.b64encode(path.read_bytes()).decode()
        return f"![{match['text']}](data:{mimetypes.guess_type(path)[0]};base64,{data})"

    return re.sub(r"!\[(?P<text>[^]]*)\]\((?P<path>[^):]+)\)", inline, markdown)


def main(stages: Annotated[list[str] | None, typer.Argument(help="DVC stages; none = all")] = None) -> None:
    """Bring stages and what they depend on up to date; Ctrl-C stops them, the same command goes on later."""
    run_as_command(distill, stages)


if __name__ == "__main__":
    typer.run(main)
