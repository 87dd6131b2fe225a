"""Two launchers, one function: in this process, or under Ray. ``compute.workers`` chooses; results do not change.

``map_groups`` spreads independent groups of items (videos to resample, clips to encode, prompts to solve) over workers.
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

TRIES = 3  # of a group, and then of each of its items alone, whose worker dies
RESTARTS = 100  # of a training whose workers die, from its last checkpoint
REFUSALS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, FloatingPointError)}
AHEAD = 2  # groups a worker has before it: one at work, one read meanwhile


Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Params section ``compute``: how much of a machine to use. In no stage's params: it must not change a result.

    workers: processes; gpus_per_worker: GPUs each of them holds; gradient_checkpointing: what a transformer in training
    makes again in the backward pass instead of keeping it, nothing (none), all of a layer but its attention
    (selective), or all (full); shard_weights: whether each worker keeps its part of a transformer in training and
    fetches the rest block by block (FSDP), or all of it (DDP); gradient_accumulation_steps: in how many passes, one
    after the other, a transformer in training sees a worker's share of a batch; compile: whether torch.compile makes
    its layers; save_in_background: whether training goes on while a copy of its state is written.
    """

    workers: int
    gpus_per_worker: float
    gradient_checkpointing: Checkpointing
    shard_weights: bool
    gradient_accumulation_steps: int
    compile: bool
    save_in_background: bool

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"compute.workers is {self.workers}; it must be at least 1")
        if self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"compute.gradient_accumulation_steps is {self.gradient_accumulation_steps}; it must be at least 1"
            )

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
    given: int = 0  # when it was given last: an actor dies over the first of those it has

    def after_a_crash(self) -> list[_Group]:
        """What to try instead; nothing for a single item that has had its chances."""
        self.tries += 1
        if self.tries < TRIES:
            return [self]
        return [_Group([item]) for item in self.items] if len(self.items) > 1 else []


class _Pool:
    """Ray's actors for a job, the groups that wait, and those that an actor has before it."""

    def __init__(self, job: Job, groups: Sequence[Sequence[Any]], compute: Compute) -> None:
        import ray

        self.compute = compute
        self.actor = ray.remote(num_cpus=1, num_gpus=compute.gpus_per_worker)(_Actor)
        self.load = ray.remote(num_cpus=1)(_load)
        self.job, self.todo = ray.put(job), deque(_Group(group) for group in groups)
        self.alive: list[Any] = []  # actors that have begun
        self.starting: dict[Any, Any] = {}  # reference of its start → actor
        self.busy: dict[Any, tuple[Any, _Group]] = {}  # reference of the result → actor, group
        self.count = 0  # of groups given
        self.deaths = 0  # of actors, since something was done last
        for _ in range(min(compute.workers, len(groups))):
            self.start()

    def start(self) -> None:
        fresh = self.actor.remote(self.job)
        self.starting[fresh.start.remote()] = fresh

    def give(self, handle: Any) -> None:
        """Fill up what ``handle`` has before it."""
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
        """Every group, in the order they finish."""
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
                yield from self.again(group)  # the process that loaded it died; the worker lives
                self.give(owner)
            except RayError as error:  # its process or its node is gone
                yield from self.settle(owner, group)
                self.replace(owner, group, error)
                # Not to the new one alone: there may never be room for it again.
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
        """What an actor that died leaves: groups that were done, the one it died over, others that only waited."""
        import ray
        from ray.exceptions import RayError

        # In the order they were given: it does one after another.
        given = {ref: theirs for ref, (actor, theirs) in self.busy.items() if actor is owner}
        failed = [group] if group is not None else []
        for reference, theirs in given.items():
            del self.busy[reference]
            try:
                yield ray.get(reference)
            except RayError:
                failed.append(theirs)
        if failed:
            first = min(failed, key=lambda each: each.given)
            self.todo.extendleft(other for other in failed if other is not first)
            yield from self.again(first)

    def replace(self, owner: Any, group: _Group | None, error: Exception) -> None:
        """Start another for an actor that died. Raises RuntimeError when they keep dying before they have begun."""
        self.deaths += 1
        if group is None and self.deaths > TRIES * self.compute.workers * (AHEAD + 1):
            raise RuntimeError(f"workers die before they have begun: {error}") from error
        self.start()
        self.alive = [other for other in self.alive if other is not owner]

    def again(self, group: _Group) -> Iterator[Handled]:
        """Put back a group that a process died over; yield it when it has had its chances."""
        tries = group.after_a_crash()
        self.todo.extend(tries)
        if not tries:
            yield Handled(results=[], bad=[(group.items[0], BadItem("crashed", f"{TRIES} processes died of it"))])


def launch(train: Callable[[Any], None], job: Any, compute: Compute, *, name: str, storage: Path) -> None:
    """Run ``train(job)`` here, or on ``compute.workers`` ranks under Ray Train as run ``name`` below ``storage``.

    ``job`` is a picklable record of paths and numbers; what ``train`` makes, it writes to the paths in it. When a rank
    dies, all are started again: ``train`` must go on by itself where it was stopped.

    Raises what ``train`` does. Under Ray a ValueError or FloatingPointError comes as it is, since no second try would
    help, and anything else as Ray's own error after many tries.
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
        said = json.loads(refusal.read_text())
        raise REFUSALS[said["kind"]](said["sentence"])


@dataclass(frozen=True)
class _Rank:
    train: Callable[[Any], None]
    threads: int
    refusal: Path

    def __call__(self, config: dict[str, Any]) -> None:
        import torch

        if self.refusal.is_file():  # Ray has started us again; whoever called ``launch`` says it
            return
        torch.set_num_threads(self.threads)
        try:
            self.train(config["job"])
        except tuple(REFUSALS.values()) as error:
            write_json(self.refusal, {"kind": type(error).__name__, "sentence": str(error)})
            raise


class _ray:
    """A Ray session: the running cluster that ``RAY_ADDRESS`` names, else a private one on this machine's loopback."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute

    def __enter__(self) -> None:
        # Before Ray is imported. Rank 0's progress lines as they are: no colours, no "repeated 6x".
        os.environ.update({"RAY_COLOR_PREFIX": "0", "RAY_DEDUP_LOGS": "0"})
        defaults, here = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_AUTH_MODE": "token"}, {}
        if "RAY_ADDRESS" not in os.environ:
            # On Linux Ray listens on every interface, whatever address it is told, but for this switch. A token of this
            # process's: the one that Ray would make lies in a file that all users may read.
            defaults |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # "local": not another session that happens to run on this machine.
            here = {"address": "local", "num_cpus": self.compute.workers + 1, "include_dashboard": False}
        os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})
        import ray

        def quiet() -> None:  # by value, not by name: Ray runs it before it can import our code
            name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
            logging.getLogger(name).setLevel(logging.ERROR)  # says every second that there is no dashboard to ask

        ray.init(logging_level="error", runtime_env={"worker_process_setup_hook": quiet}, **here)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
