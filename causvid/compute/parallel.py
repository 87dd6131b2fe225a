"""Run work in this process or on several Ray workers. ``compute.workers`` does not change the results.

``map_groups`` distributes independent groups of items (videos, clips, prompts) over workers.
``launch`` runs one training function on every rank.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from causvid.runtime.files import write_json

TRIES = 3  # tries of a group whose worker dies, and then of each item of the group; Ray cannot split a group
RESTARTS = 100  # maximum number of restarts of a training from the last checkpoint if workers die
# If a training raises one of these errors, it is not restarted, because it would raise the error again.
REFUSALS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, FloatingPointError)}
AHEAD = 2  # number of groups that a worker has: it processes one group while the next group is loaded

Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Params section ``compute``, the use of a machine. It is a dependency of no stage: results must not depend on it.

    Attributes:
        workers: Number of processes.
        gpus_per_worker: Number of GPUs of each worker.
        gradient_checkpointing: Activations of a layer that the backward pass computes again to save memory: "none",
            all except the outputs of the attention ("selective"), or all ("full").
        shard_weights: Whether a worker holds one shard of every weight (FSDP2) or all weights (DDP).
        gradient_accumulation_steps: Number of micro-batches into which a worker splits its share of a batch.
        compile: Whether the layers of transformers are compiled by ``torch.compile`` for training.
        save_in_background: Whether training continues while a copy of its state is written.
    """

    workers: int
    gpus_per_worker: float
    gradient_checkpointing: Checkpointing
    shard_weights: bool
    gradient_accumulation_steps: int
    compile: bool
    save_in_background: bool

    def __post_init__(self) -> None:
        for name in ("workers", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"compute.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def threads(self) -> int:
        """Return the number of CPU threads of each worker. All workers share the cores equally."""
        return max(1, cores() // self.workers)


def cores() -> int:
    """Return the number of CPUs on which this process may run. A scheduler may allow only some CPUs."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BadItem(Exception):
    """An item cannot be processed, but other items can. ``code`` is a short constant word, ``reason`` is a clause."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Worker(Protocol):
    """A function with loaded models that processes one group after another. It must write files atomically."""

    def __call__(self, loaded: Sequence[Any], /) -> Sequence[Any]:
        """Process the loaded items of one group, and return the results."""
        ...


class Job(Protocol):
    """A description of the processing of items, which is pickled and sent to the workers."""

    def load(self, item: Any, /) -> Any:
        """Read the data of ``item``, on any CPU and without models. Raises BadItem for an unusable item."""
        ...

    def worker(self) -> Worker:
        """Load the models in the current process, and return a worker with these models."""
        ...


@dataclass(frozen=True, kw_only=True)
class Handled:
    """A finished group: the results of the worker, and the items that could not be processed, with an error each."""

    results: Sequence[Any]
    bad: Sequence[tuple[Any, BadItem]]


def map_groups(job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[Handled]:
    """Load and process every group with ``job``, and yield each group when it is finished, in any order.

    The result of a group does not depend on its worker. If workers have GPUs, other CPUs load the next groups at the
    same time. If a worker or a node dies, it is replaced and its group is tried again, finally item by item. If the
    worker of an item dies ``TRIES`` times, the item gets a ``BadItem`` with the code "crashed". This function raises
    exceptions of the workers. Without Ray, it always raises the exception of the first group that failed.
    """
    if compute.workers == 1 or len(groups) < 2:
        yield from _here(job, groups, compute)
        return
    with _ray(compute):
        yield from _Pool(job, groups, compute).run()


def _load(job: Job, group: Sequence[Any]) -> tuple[list[Any], list[tuple[Any, BadItem]]]:
    loaded, bad = [], []
    for item in group:
        try:
            loaded.append(job.load(item))
        except BadItem as error:
            bad.append((item, error))
    return loaded, bad


def _here(job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[Handled]:
    """Process the groups in this process: with one worker on a GPU, or with one worker and one thread per core.

    In every thread and in every Ray actor, torch uses one thread. The number of threads changes the order of summations
    and thus the last bits of a sum, and results must have the same bytes.
    """
    import torch

    count = 1 if compute.gpus_per_worker else compute.threads
    before, idle = torch.get_num_threads(), SimpleQueue[Worker]()
    # All workers are created before the first group, because torch's default dtype changes while a model is loaded.
    for _ in range(min(count, len(groups))):
        idle.put(job.worker())
    readers = ThreadPoolExecutor(AHEAD) if compute.gpus_per_worker else None
    read: dict[int, Future[Any]] = {}

    def load(index: int) -> tuple[list[Any], list[tuple[Any, BadItem]]]:
        if readers is None:
            return _load(job, groups[index])
        for later in range(index, min(index + AHEAD, len(groups))):
            if later not in read:
                read[later] = readers.submit(_load, job, groups[later])
        ready: tuple[list[Any], list[tuple[Any, BadItem]]] = read.pop(index).result()
        return ready

    def handle(index: int) -> Handled:
        loaded, bad = load(index)
        worker = idle.get()
        try:
            return Handled(results=worker(loaded) if loaded else [], bad=bad)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    futures = [pool.submit(handle, index) for index in range(len(groups))]
    try:
        for future in as_completed(futures):
            if future.exception() is not None:
                break
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        if readers is not None:
            readers.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
    # Groups start in order, so all groups before a failed group are finished: every run raises the same error.
    for future in futures:
        if not future.cancelled():
            future.result()


class _Actor:
    def __init__(self, job: Job) -> None:
        self.job = job

    def start(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.worker = self.job.worker()

    def handle(self, group: Sequence[Any]) -> Handled:
        return self.finish(_load(self.job, group))

    def finish(self, read: tuple[list[Any], list[tuple[Any, BadItem]]]) -> Handled:
        loaded, bad = read
        return Handled(results=self.worker(loaded) if loaded else [], bad=bad)


@dataclass
class _Group:
    items: Sequence[Any]
    tries: int = 0
    given: int = 0  # number of the last assignment; an actor that dies was processing its group with the lowest number

    def after_a_crash(self) -> list[_Group]:
        """Return the groups to try next: this group, one group per item, or no group after the last try of an item."""
        self.tries += 1
        if self.tries < TRIES:
            return [self]
        return [_Group([item]) for item in self.items] if len(self.items) > 1 else []


class _Pool:
    """The Ray actors of a job, the waiting groups, and the groups that are assigned to an actor."""

    def __init__(self, job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> None:
        import ray

        self.compute = compute
        self.actor = ray.remote(num_cpus=1, num_gpus=compute.gpus_per_worker)(_Actor)
        self.load = ray.remote(num_cpus=1)(_load)
        self.job, self.todo = ray.put(job), deque(_Group(group) for group in groups)
        self.alive: list[Any] = []  # actors that have started
        self.starting: dict[Any, Any] = {}  # maps the Ray reference of a call of start to the actor
        self.busy: dict[Any, tuple[Any, _Group]] = {}  # maps the Ray reference of a result to the actor and the group
        self.count = 0  # number of assignments of groups to actors
        self.deaths = 0  # number of dead actors since the last finished group
        for _ in range(min(compute.workers, len(groups))):
            self.start()

    def start(self) -> None:
        fresh = self.actor.remote(self.job)
        self.starting[fresh.start.remote()] = fresh

    def give(self, handle: Any) -> None:
        """Assign groups to the actor ``handle`` until it has ``AHEAD`` groups."""
        while self.todo and sum(owner is handle for owner, _ in self.busy.values()) < AHEAD:
            group = self.todo.popleft()
            self.count += 1
            group.given = self.count
            if self.compute.gpus_per_worker:
                reference = handle.finish.remote(self.load.remote(self.job, group.items))
            else:
                reference = handle.handle.remote(group.items)
            self.busy[reference] = (handle, group)

    def run(self) -> Iterator[Handled]:
        """Yield every group when it is finished."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        while self.todo or self.busy:
            (ready,), _ = ray.wait([*self.busy, *self.starting], num_returns=1)
            owner, group = self.busy.pop(ready, (self.starting.pop(ready, None), None))
            try:
                done = ray.get(ready)
            except RayTaskError as error:
                if group is None or not isinstance(error.cause, RayError):
                    raise
                yield from self.again(group)  # the process that loaded the group died, not the worker
                self.give(owner)
            except RayError as error:  # the process or the node of the actor died
                yield from self.settle(owner, group)
                self.replace(owner, group, error)
                # The other actors get the groups, because the cluster may not have room for the new actor.
                for other in self.alive:
                    self.give(other)
            else:
                if group is None:
                    self.alive.append(owner)
                self.give(owner)
                if group is not None:
                    self.deaths = 0
                    yield done

    def settle(self, owner: Any, group: _Group | None) -> Iterator[Handled]:
        """Yield the finished groups of an actor that died, and put unfinished groups back into the queue."""
        import ray
        from ray.exceptions import RayError

        # The groups are in the order of assignment, in which an actor processes them.
        assigned = {ref: waiting for ref, (actor, waiting) in self.busy.items() if actor is owner}
        failed = [group] if group is not None else []
        for reference, waiting in assigned.items():
            del self.busy[reference]
            try:
                yield ray.get(reference)
            except RayError:
                failed.append(waiting)
        if failed:
            first = min(failed, key=lambda each: each.given)
            self.todo.extendleft(other for other in failed if other is not first)
            yield from self.again(first)

    def replace(self, owner: Any, group: _Group | None, error: Exception) -> None:
        """Replace an actor that died. Raises RuntimeError if too many actors in a row die before they start."""
        self.deaths += 1
        if group is None and self.deaths > TRIES * self.compute.workers * (AHEAD + 1):
            raise RuntimeError(f"Ray workers die before they have started: {error}") from error
        self.start()
        self.alive = [other for other in self.alive if other is not owner]

    def again(self, group: _Group) -> Iterator[Handled]:
        """Put a group whose process died back into the queue. After the last try, yield the group with a bad item."""
        tries = group.after_a_crash()
        self.todo.extend(tries)
        if not tries:
            yield Handled(results=[], bad=[(group.items[0], BadItem("crashed", f"the item crashed {TRIES} processes"))])


def launch(train: Callable[[Any], None], job: Any, compute: Compute, *, name: str, storage: Path) -> None:
    """Run ``train(job)`` in this process, or on all ranks of the Ray Train run ``name``, whose state is in ``storage``.

    Args:
        train: Function that writes its results to the paths in ``job``. If a rank dies, all ranks are restarted, so
            the function must resume an interrupted training.
        job: A picklable object with paths and settings.

    Raises:
        Exception: ``train`` raised this exception. With Ray, ValueError and FloatingPointError are raised immediately;
            any other exception becomes an error of Ray after ``RESTARTS`` restarts.
    """
    if compute.workers == 1:
        train(job)
        return
    on_gpu, refusal = compute.gpus_per_worker > 0, storage / "refusal.json"
    refusal.unlink(missing_ok=True)
    with _ray(compute):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        trainer = TorchTrainer(
            _Rank(train, compute.threads, refusal),
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=compute.workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": 1} | ({"GPU": compute.gpus_per_worker} if on_gpu else {}),
            ),
            run_config=RunConfig(
                name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=RESTARTS)
            ),
        )
        trainer.fit()
    if refusal.is_file():
        recorded = json.loads(refusal.read_text())
        raise REFUSALS[recorded["kind"]](recorded["sentence"])


@dataclass(frozen=True)
class _Rank:
    train: Callable[[Any], None]
    threads: int
    refusal: Path

    def __call__(self, config: dict[str, Any]) -> None:
        import torch

        if self.refusal.is_file():  # Ray restarted the ranks; ``launch`` raises the error from this file
            return
        torch.set_num_threads(self.threads)
        try:
            self.train(config["job"])
        except tuple(REFUSALS.values()) as error:
            write_json(self.refusal, {"kind": type(error).__name__, "sentence": str(error)})
            raise


class _ray:
    """A Ray session on the cluster at ``RAY_ADDRESS``. If this variable is not set, Ray starts on loopback."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute

    def __enter__(self) -> None:
        # Ray reads these variables at its import. They remove colours and "repeated 6x" from rank 0's progress lines.
        os.environ.update({"RAY_COLOR_PREFIX": "0", "RAY_DEDUP_LOGS": "0"})
        defaults, here = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_AUTH_MODE": "token"}, {}
        if "RAY_ADDRESS" not in os.environ:
            # On Linux, Ray needs this variable to listen on loopback only. The token is created here, because Ray would
            # store its own token in a file that all users can read.
            defaults |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # The address "local" starts a new session, even if another session runs on this machine.
            here = {"address": "local", "num_cpus": self.compute.workers + 1, "include_dashboard": False}
        os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})
        import ray

        def quiet() -> None:  # pickled by value, because Ray calls it before this module can be imported
            name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
            logging.getLogger(name).setLevel(logging.ERROR)  # hides a warning every second about the missing dashboard

        ray.init(logging_level="error", runtime_env={"worker_process_setup_hook": quiet}, **here)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
