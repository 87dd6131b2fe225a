"""Prefect flow for the paper's Table 4: all stages of ablation/dvc.yaml, and the stages of dvc.yaml that they need.

``python -m flows.ablate [STAGE ...]`` runs the flow with the server in PREFECT_API_URL or with a temporary server.
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

PIPELINE = "ablation/dvc.yaml"


# The form in Prefect offers these names. DVC checks the names when a flow starts.
Target = Annotated[str, Field(json_schema_extra={"enum": stages_of(Path(PIPELINE))})]


# One worker, because DVC does not write dvc.lock atomically.
@flow(
    name="ablate",
    flow_run_name=run_name("table 4"),
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def ablate(targets: list[Target] = []) -> State[list[Record]]:  # noqa: B006  # never changed; None would need a choice
    """Bring stages of the ablation, the paper's Table 4, up to date.

    Args:
        targets: Stages of ablation/dvc.yaml to run. Their upstream stages are run as well. An empty list means all.
    """
    addresses = [target if ":" in target else f"{PIPELINE}:{target}" for target in targets]
    return bring_up_to_date("ablate", Path(Repo.find_root()), addresses or [PIPELINE])


def main(
    stages: Annotated[list[str] | None, typer.Argument(help="stages of ablation/dvc.yaml; default: all")] = None,
) -> None:
    """Bring the ablation and its upstream stages up to date. After Ctrl-C, the same command continues."""
    run_as_command(ablate, stages or [])


if __name__ == "__main__":
    typer.run(main)
