"""Prefect flow for the stages from videos to latents and prompt embeddings.

``python -m flows.data`` runs the flow with the server in PREFECT_API_URL or with a temporary server.
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

STAGES = ["pack_lmdb@latents", "encode_prompts"]


# One worker, because DVC does not write dvc.lock atomically; few stages of the graph could run in parallel.
@flow(
    name="data",
    flow_run_name=run_name("data"),
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def data() -> State[list[Record]]:
    """Bring the LMDB of latents, the prompt embeddings and their upstream stages up to date."""
    return bring_up_to_date("data", Path(Repo.find_root()), STAGES)


if __name__ == "__main__":
    run_as_command(data)
