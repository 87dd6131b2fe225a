"""From videos to latents and prompt embeddings, as one Prefect flow.

``python -m flows.data`` runs it, with the server of PREFECT_API_URL or without one.
"""

from __future__ import annotations

from pathlib import Path

from dvc.repo import Repo
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_flow import bring_up_to_date, run_as_command
from flows.dvc_task import Record

STAGES = ["pack_lmdb@latents", "encode_prompts"]


# One worker: the graph is nearly a line, and DVC does not write dvc.lock atomically.
@flow(name="data", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def data() -> State[list[Record]]:
    """Bring the data and what it depends on up to date."""
    return bring_up_to_date("data", Path(Repo.find_root()), STAGES)


if __name__ == "__main__":
    run_as_command(data)
