"""The paper's Table 4 as one Prefect flow: every stage of ablation/dvc.yaml, and of the root's what they depend on.

``python -m flows.ablate [STAGE ...]`` runs it, with the server of PREFECT_API_URL or without one.
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


# One worker: DVC does not write dvc.lock atomically.
@flow(name="ablate", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def ablate(targets: list[str] | None = None) -> State[list[Record]]:
    """Bring the stages ``targets`` of the ablation (none = all of it) and what they depend on up to date."""
    addresses = [target if ":" in target else f"{PIPELINE}:{target}" for target in targets or []]
    return bring_up_to_date("ablate", Path(Repo.find_root()), addresses or [PIPELINE])


def main(
    stages: Annotated[list[str] | None, typer.Argument(help="stages of ablation/dvc.yaml; none = all")] = None,
) -> None:
    """Bring the ablation and what it depends on up to date; Ctrl-C stops it, the same command goes on later."""
    run_as_command(ablate, stages or None)


if __name__ == "__main__":
    typer.run(main)
