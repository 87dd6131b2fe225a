"""Prefect flow for the complete pipeline: all stages of dvc.yaml in the order of DVC's graph.

``python -m flows.distill [STAGE ...]`` runs the flow with the server in PREFECT_API_URL or with a temporary server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dvc.repo import Repo
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.dvc_flow import bring_up_to_date, run_as_command
from flows.dvc_task import Record
from flows.labels import run_name, stages_of
from flows.report import show_report

# The form in Prefect offers these names. DVC checks the names when a flow starts.
Target = Annotated[str, Field(json_schema_extra={"enum": stages_of(Path("dvc.yaml"))})]


# One worker, because DVC does not write dvc.lock atomically; few stages of the graph could run in parallel.
@flow(
    name="distill",
    flow_run_name=run_name("all stages"),
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def distill(targets: list[Target] = []) -> State[list[Record]]:  # noqa: B006  # never changed; None would need a choice
    """Bring stages up to date with their params, code and inputs.

    Args:
        targets: Stages to run. Their upstream stages are run as well. An empty list means all stages.
    """
    root = Path(Repo.find_root())
    state = bring_up_to_date("distill", root, targets)
    if state.is_completed():
        show_report(root)
    return state


def main(stages: Annotated[list[str] | None, typer.Argument(help="stages of dvc.yaml; default: all")] = None) -> None:
    """Bring stages and their upstream stages up to date. After Ctrl-C, the same command continues."""
    run_as_command(distill, stages or [])


if __name__ == "__main__":
    typer.run(main)
