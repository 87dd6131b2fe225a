"""Two launchers, one function: in this process, or under Ray. ``compute.workers`` chooses; results do not change.

``map_groups`` spreads independent groups of items (videos to resample, clips to encode, prompts to solve) over workers.
``launch`` runs one training function on every rank.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

TRIES = 3  # of a group, and then of each of its items alone, whose worker dies
AHEAD = 2  # groups a worker has before it: one at work, one read meanwhile


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Params section ``compute``: how much of a machine to use. In no stage's params: it must not change a result.

    workers: processes; gpus_per_worker: GPUs each of them holds; gradient_checkpointing: whether a transformer in
    training makes its activations again in the backward pass instead of keeping them.
    """

    workers: int
    gpus_per_worker: float
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"compute.workers is {self.workers}; it must be at least 1")

    @property
    def threads(self) -> int:
        """CPU threads each worker may use without taking them from another."""
        return max(1, cores() // self.workers)


def cores() -> int:
    """CPUs this process may run on: fewer than the machine has, in a container or under a scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BadItem(Exception):
    """This item cannot be handled; others can. code: a short stable word; the message: a sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Worker(Protocol):
    """Holds its models and handles group after group. It may write files of its own: whole or not at all."""

    def __call__(self, loaded: Sequence[Any], /) -> Sequence[Any]:
        """Handle what was loaded of one group."""
        ...


class Job(Protocol):
    """What is to be done with items; pickled to whoever does it."""

    def load(self, item: Any, /) -> Any:
        """Read what ``item`` needs, on any CPU, without models. Raises BadItem."""
        ...

    def worker(self) -> Worker:
        """Load the models, in the worker's own process."""
        ...


@dataclass(frozen=True, kw_only=True)
class Handled:
    """A group that is done: what its worker returned, and the items that could not be handled, with the reason."""

    results: Sequence[Any]
    bad: Sequence[tuple[Any, BadItem]]


def map_groups(job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[Handled]:
    """Give every group to a worker of ``job``; yield it when it is done, in any order.

    Groups are whole units: who handles one cannot change its bytes. Where workers hold GPUs, other CPUs load the next
    group meanwhile. A worker or a node that dies is replaced and its group tried again, in the end item by item: an
    item that takes its worker down ``TRIES`` times is bad, with code crashed. An exception in a worker is raised here,
    in this process that of the first group that has one.
    """
    if compute.workers == 1 or len(groups) < 2:
        yield from _here(job, groups, compute)
        return
    with _ray(compute):
        yield from _on_ray(job, groups, compute)


def _load(job: Job, group: Sequence[Any]) -> tuple[list[Any], list[tuple[Any, BadItem]]]:
    loaded, bad = [], []
    for item in group:
        try:
            loaded.append(job.load(item))
        except BadItem as error:
            bad.append((item, error))
    return loaded, bad


def _here(job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[Handled]:
    """A worker in each of this process's threads, or in one of them if it holds a GPU.

    Torch has one thread in each, as in a Ray actor: how a sum is split over threads decides its last bits, and so the
    bytes that are written.
    """
    import torch

    count = 1 if compute.gpus_per_worker else compute.threads
    before, idle = torch.get_num_threads(), SimpleQueue[Worker]()
    # All of them before the first group: loading a model changes torch's defaults for the whole process for a moment.
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
    # Groups begin in their order: every one before a failed one has ended by now, so the same mistake is always named.
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

    def after_a_crash(self) -> list[_Group]:
        """What to try instead; nothing for a single item that has had its chances."""
        self.tries += 1
        if self.tries < TRIES:
            return [self]
        return [_Group([item]) for item in self.items] if len(self.items) > 1 else []


def _on_ray(job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[Handled]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    actor = ray.remote(num_cpus=1, num_gpus=compute.gpus_per_worker)(_Actor)
    load = ray.remote(num_cpus=1)(_load)
    shared, todo = ray.put(job), deque(_Group(group) for group in groups)
    alive: list[Any] = []  # actors that have begun
    starting: dict[Any, Any] = {}  # reference of its start → actor
    busy: dict[Any, tuple[Any, _Group]] = {}  # reference of the result → actor, group
    deaths = 0  # of actors, since something was done last

    def crashed(group: _Group) -> Iterator[Handled]:
        again = group.after_a_crash()
        todo.extend(again)
        if not again:
            yield Handled(results=[], bad=[(group.items[0], BadItem("crashed", f"{TRIES} processes died of it"))])

    def start() -> None:
        fresh = actor.remote(shared)
        starting[fresh.start.remote()] = fresh

    def give(handle: Any) -> None:
        while todo and sum(owner is handle for owner, _ in busy.values()) < AHEAD:
            group = todo.popleft()
            if compute.gpus_per_worker:
                reference = handle.finish.remote(load.remote(shared, group.items))
            else:
                reference = handle.handle.remote(group.items)
            busy[reference] = (handle, group)

    for _ in range(min(compute.workers, len(groups))):
        start()
    while todo or busy:
        (ready,), _ = ray.wait([*busy, *starting], num_returns=1)
        owner, group = busy.pop(ready, (starting.pop(ready, None), None))
        try:
            done = ray.get(ready)
        except RayTaskError as error:
            if group is None or not isinstance(error.cause, RayError):
                raise
            yield from crashed(group)  # in the process that loaded it; the worker lives
            give(owner)
            continue
        except RayError as error:  # its process or its node is gone
            deaths += 1
            if group is None and deaths > TRIES * compute.workers * (AHEAD + 1):
                raise RuntimeError(f"workers die before they have begun: {error}") from error
            # The other group it had comes back by itself, with the same error; one new worker takes its place.
            if not any(other is owner for other, _ in busy.values()):
                start()
            alive = [other for other in alive if other is not owner]
            if group is not None:
                yield from crashed(group)
            # Not to the new one alone: there may never be room for it again.
            for other in alive:
                give(other)
            continue
        if group is None:
            alive.append(owner)
        give(owner)
        if group is not None:
            deaths = 0
            yield done


def launch(train: Callable[[Any], None], job: Any, compute: Compute, *, name: str, storage: Path) -> None:
    """Run ``train(job)`` here, or on ``compute.workers`` ranks under Ray Train as run ``name`` below ``storage``.

    ``job`` is a picklable record of paths and numbers; what ``train`` makes, it writes to the paths in it.
    """
    if compute.workers == 1:
        train(job)
        return
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = compute.gpus_per_worker > 0
    with _ray(compute):
        trainer = TorchTrainer(
            _Rank(train, compute.threads),
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=compute.workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": 1} | ({"GPU": compute.gpus_per_worker} if on_gpu else {}),
            ),
            run_config=RunConfig(name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=2)),
        )
        trainer.fit()


@dataclass(frozen=True)
class _Rank:
    train: Callable[[Any], None]
    threads: int

    def __call__(self, config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.train(config["job"])


class _ray:
    """A Ray session: the running cluster that ``RAY_ADDRESS`` names, else a private one on this machine's loopback."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute

    def __enter__(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

        def quiet() -> None:  # by value, not by name: Ray runs it before it can import our code
            name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
            logging.getLogger(name).setLevel(logging.ERROR)  # says every second that there is no dashboard to ask

        # Rank 0's progress lines as they are: no colours, no "repeated 6x".
        os.environ.update({"RAY_COLOR_PREFIX": "0", "RAY_DEDUP_LOGS": "0"})
        here: dict[str, Any] = {}
        if "RAY_ADDRESS" not in os.environ:
            here = {"num_cpus": self.compute.workers + 1, "_node_ip_address": "127.0.0.1", "include_dashboard": False}
        ray.init(logging_level="error", runtime_env={"worker_process_setup_hook": quiet}, **here)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
