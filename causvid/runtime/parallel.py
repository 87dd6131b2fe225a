"""Two launchers, one function: in this process, or under Ray. ``compute.workers`` chooses; results do not change.

``map_groups`` spreads independent groups of items (clips to encode, prompts to solve) over workers. ``launch`` runs one
training function on every rank.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)


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


class Worker(Protocol[Item]):
    """Loads its models once and then handles group after group, writing its own files."""

    def __call__(self, group: Sequence[Item]) -> None:
        """Handle one group."""
        ...


def map_groups(make: Callable[[], Worker[Any]], groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[int]:
    """Give every group to a worker made by ``make``; yield the size of each group when it is done, in any order.

    Groups are whole units: who handles one cannot change its bytes. An exception in a worker is raised here, in this
    process that of the first group that has one.
    """
    if compute.workers == 1 or len(groups) < 2:
        yield from _in_threads(make, groups, 1 if compute.gpus_per_worker else compute.threads)
        return
    import ray
    from ray.util import ActorPool

    with _ray(compute):
        actor = ray.remote(num_cpus=1, num_gpus=compute.gpus_per_worker)(_Actor)
        pool = ActorPool([actor.remote(make) for _ in range(min(compute.workers, len(groups)))])
        yield from pool.map_unordered(lambda a, group: a.handle.remote(group), groups)


def _in_threads(make: Callable[[], Worker[Any]], groups: Sequence[Sequence[Any]], count: int) -> Iterator[int]:
    """A worker in each of ``count`` threads of this process, torch with one thread in each, as in a Ray actor:

    how a sum is split over threads decides its last bits, and so the bytes that are written.
    """
    import torch

    before, idle = torch.get_num_threads(), SimpleQueue[Worker[Any]]()
    # All of them before the first group: loading a model changes torch's defaults for the whole process for a moment.
    for _ in range(min(count, len(groups))):
        idle.put(make())

    def handle(group: Sequence[Any]) -> int:
        worker = idle.get()
        try:
            worker(group)
        finally:
            idle.put(worker)
        return len(group)

    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    futures = [pool.submit(handle, group) for group in groups]
    try:
        for future in as_completed(futures):
            if future.exception() is not None:
                break
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
    # Groups begin in their order: every one before a failed one has ended by now, so the same mistake is always named.
    for future in futures:
        if not future.cancelled():
            future.result()


class _Actor:
    def __init__(self, make: Callable[[], Worker[Any]]) -> None:
        import torch

        torch.set_num_threads(1)
        self.worker = make()

    def handle(self, group: Sequence[Any]) -> int:
        self.worker(group)
        return len(group)


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
