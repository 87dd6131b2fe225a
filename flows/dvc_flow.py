"""Run a flow: lock the workspace, run one task per stage, record the parent run in MLflow, write tables in Prefect."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import sys
import threading
from asyncio import CancelledError
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from filelock import FileLock, Timeout
from prefect import Flow, get_run_logger
from prefect import tags as tagged
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from flows.dvc_repo import Plan, Stage, read_plan, repair
from flows.dvc_task import Record, StageFailed, run_dvc, run_stage
from flows.labels import run_tags
from flows.mlflow_run import ParentRun, parent_run

UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
NOTED = 80  # largest number of stages in the note of an MLflow run, which has at most 8000 characters
CANCEL_POLL = 5.0  # seconds between two requests to the server for the state of the flow run


def bring_up_to_date(name: str, root: Path, targets: Sequence[str] | None) -> State[list[Record]]:
    """Run a flow.

    Args:
        name: Name of the flow.
        root: The project's root.
        targets: Names of stages; None = all stages in dvc.yaml. Upstream stages of the targets are run as well.

    Returns:
        The final state of the flow: Completed with one Record per stage, Failed with the last lines of the failed
        stages, or Cancelled.

    Raises:
        ValueError: A target is unknown.
        RuntimeError: Another flow is running in this workspace.
    """
    with only_flow(root):
        for broken in repair(root):
            get_run_logger().warning("%s is incomplete because a process was killed; moved to .dvc/tmp", broken)
        try:
            plan = read_plan(root, targets, refresh=_refresh)
            with _above(name, plan, root) as parent:
                states = run_stages(plan.stages, root, parent.environment)
                create_table_artifact(key="stages", table=_rows(states), description=f"The stages of this {name}")
                parent.note = _note(name, states)
                failed = [state for state in states.values() if state.is_failed()]
                errors: list[Any] = [state.result(raise_on_failure=False) for state in failed]
                if errors:
                    raise StageFailed("; ".join(each.reason for each in errors), (f"\n{each}" for each in errors))
        except StageFailed as error:
            return Failed(message=error.reason, data=error)
    if not all(state.is_completed() for state in states.values()):
        return Cancelled(message="stopped; the same command continues from this point")
    counts = Counter(str(state.name).lower() for state in states.values())
    message = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return Completed(message=message, data=[state.result() for state in states.values()])


def _refresh(stage: Stage) -> None:
    """Run a stage that DVC always regards as changed. Raises StageFailed."""
    run_dvc(stage, environment={}, log=get_run_logger().info, stop=threading.Event())


def run_as_command(flow: Flow[..., State[list[Record]]], *arguments: object) -> None:
    """Run ``flow`` with ``arguments`` as a command. If the flow fails, the command exits with the reason."""
    # Prefect calls the previous handler of SIGTERM; the default handler would not stop Prefect's temporary server.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    state: State[Any] = flow(*arguments, return_state=True)
    if not state.is_completed():
        sys.exit(f"{state.name}: {state.result(raise_on_failure=False) if state.is_failed() else state.message}")


def run_stages(stages: Sequence[Stage], root: Path, environment: Mapping[str, str]) -> dict[str, State[Any]]:
    """Run each stage as a task, after its upstream stages. An interruption of the flow kills the running stages.

    Args:
        stages: The stages, in an order in which each stage is after its upstream stages.
        root: The project's root.
        environment: Additional environment variables of the stages.

    Returns:
        A mapping from the name of each stage to its final state.
    """
    stop = threading.Event()
    futures: dict[str, PrefectConcurrentFuture[Any]] = {}
    try:
        for stage in stages:
            # The tag is not an option of the task, because Prefect would then warn of a deadlock with one worker.
            with tagged(*(["gpu"] if stage.gpu else [])):
                task: Any = run_stage.with_options(retries=stage.retries)
                upstream = [futures[name] for name in stage.upstream]
                futures[stage.name] = task.submit(stage, root, environment, stop, wait_for=upstream)
        with get_client(sync_client=True) as client:
            while concurrent.futures.wait((future.wrapped_future for future in futures.values()), CANCEL_POLL).not_done:
                if _is_cancelled(client):
                    stop.set()
        return {name: _end_state(future) for name, future in futures.items()}
    finally:
        stop.set()


@contextmanager
def only_flow(root: Path) -> Iterator[None]:
    """Lock the workspace for this flow run, and mark flow runs of killed processes in this workspace as Crashed.

    Raises RuntimeError if another flow is running in the workspace.
    """
    lock = FileLock(root / ".dvc" / "tmp" / "flow.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"another flow is running in {root}; wait for it or stop it") from error
    try:
        with get_client(sync_client=True) as client:
            workspace = f"{socket.gethostname()}:{root}"
            crash_dead_runs(client, workspace)
            client.update_flow_run(UUID(flow_run.id), tags=[*flow_run.tags, workspace, *run_tags(root)])
        yield
    finally:
        lock.release()


def crash_dead_runs(client: SyncPrefectClient, workspace: str) -> None:
    """Mark unfinished flow runs with the tag ``workspace``, whose processes were killed, and their tasks as Crashed."""
    state: State[Any] = Crashed(message="the process of this flow has ended")
    unfinished = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
        tags=FlowRunFilterTags(all_=[workspace]),
    )
    tasks = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNFINISHED)))
    for run in client.read_flow_runs(flow_run_filter=unfinished):
        this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        for task_run in client.read_task_runs(flow_run_filter=this_run, task_run_filter=tasks):
            client.set_task_run_state(task_run.id, state, force=True)
        client.set_flow_run_state(run.id, state, force=True)


@contextmanager
def _above(name: str, plan: Plan, root: Path) -> Iterator[ParentRun]:
    """Record the parent run of the stages in MLflow, if at least one stage is not up to date."""
    if plan.changed:
        with parent_run(name, root, {"prefect_flow_run": str(flow_run.id)}) as parent:
            yield parent
    else:
        yield ParentRun({})


def _end_state(future: PrefectConcurrentFuture[Any]) -> State[Any]:
    try:
        future.wait()
    except CancelledError:
        return Crashed(message="stopped")
    return future.state


def _is_cancelled(client: SyncPrefectClient) -> bool:
    try:
        state = client.read_flow_run(UUID(flow_run.id)).state
    except httpx.HTTPError:  # the server is restarting
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _rows(states: Mapping[str, State[Any]]) -> list[dict[str, Any]]:
    seconds = {name: state.result().seconds for name, state in states.items() if state.is_completed()}
    return [{"stage": name, "outcome": state.name, "seconds": seconds.get(name)} for name, state in states.items()]


def _note(name: str, states: Mapping[str, State[Any]]) -> str:
    """Return Markdown for the page of the MLflow run: a table of up to ``NOTED`` stages that ran or were restored."""
    rows = [
        f"| {row['stage']} | {row['outcome']} | {'' if row['seconds'] is None else row['seconds']} |\n"
        for row in _rows(states)
        if row["outcome"] != "Unchanged"
    ]
    head = f"Flow `{name}`, Prefect run `{flow_run.name}`.\n\n| stage | outcome | seconds |\n| --- | --- | --- |\n"
    return head + "".join(rows[:NOTED]) + (f"\nand {len(rows) - NOTED} more\n" if len(rows) > NOTED else "")
