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

from flows.dvc_flow import bring_up_to_date, run_as_command
from flows.dvc_task import Record

PIPELINE = "ablation/dvc.yaml"


# One worker, because DVC does not write dvc.lock atomically.
@flow(name="ablate", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def ablate(targets: list[str] | None = None) -> State[list[Record]]:
    """Bring the stages ``targets`` of the ablation (None = all) and their upstream stages up to date."""
    addresses = [target if ":" in target else f"{PIPELINE}:{target}" for target in targets or []]
    return bring_up_to_date("ablate", Path(Repo.find_root()), addresses or [PIPELINE])


def main(
    stages: Annotated[list[str] | None, typer.Argument(help="stages of ablation/dvc.yaml; default: all")] = None,
) -> None:
    """Bring the ablation and its upstream stages up to date. After Ctrl-C, the same command continues."""
    run_as_command(ablate, stages or None)


if __name__ == "__main__":
    typer.run(main)
