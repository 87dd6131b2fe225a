"""Prefect flow for the stages that compute the scores, the latency and the report.

``python -m flows.evaluate`` runs the flow with the server in PREFECT_API_URL or with a temporary server.
"""

from __future__ import annotations

from pathlib import Path

from dvc.repo import Repo
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_flow import bring_up_to_date, run_as_command
from flows.dvc_task import Record
from flows.labels import run_name
from flows.report import show_report

STAGES = ["evaluate", "measure_latency", "report"]


# One worker, because DVC does not write dvc.lock atomically; few stages of the graph could run in parallel.
@flow(
    name="evaluate",
    flow_run_name=run_name("scores"),
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def evaluate() -> State[list[Record]]:
    """Bring the scores, the latency, the report and their upstream stages up to date."""
    root = Path(Repo.find_root())
    state = bring_up_to_date("evaluate", root, STAGES)
    if state.is_completed():
        show_report(root)
    return state


if __name__ == "__main__":
    run_as_command(evaluate)
