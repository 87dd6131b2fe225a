"""Groups of items and trainings run correctly in this process.

tests/pipeline/test_ray.py contains the tests with Ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from causvid.compute import parallel
from causvid.compute.parallel import BadItem, Compute, Worker, launch, map_groups
from tests.conftest import ONE_WORKER


def compute(workers: int = 1) -> Compute:
    return replace(ONE_WORKER, workers=workers)


@dataclass
class Work:
    """A ``Job`` whose workers are functions that ``make`` returns. The job records the loaded items."""

    make: Callable[[], Callable[[Sequence[int]], object]]
    loads: list[int] = field(default_factory=list)

    def load(self, item: int) -> int:
        self.loads.append(item)
        if item < 0:
            raise BadItem("negative", f"{item} is below 0")
        return item

    def worker(self) -> Worker:
        handle = self.make()

        def work(loaded: Sequence[int]) -> Sequence[int]:
            handle(loaded)
            return loaded

        return work


class Factory:
    """Create workers that record their groups and torch's threads. A worker fails if its group contains the item 13."""

    def __init__(self) -> None:
        self.made, self.groups, self.torch_threads = 0, list[Sequence[int]](), set[int]()

    def __call__(self) -> Callable[[Sequence[int]], object]:
        self.made += 1
        return self.handle

    def handle(self, group: Sequence[int]) -> None:
        if 13 in group:
            raise ValueError("unlucky")
        self.torch_threads.add(torch.get_num_threads())
        self.groups.append(group)


@pytest.fixture
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)


@pytest.mark.usefixtures("_two_cores")
@pytest.mark.parametrize(("workers", "groups"), [(1, [[1, 2], [3], [4, 5, 6], [7]]), (2, [[1, 2]]), (2, [])])
def test_every_group_is_processed_exactly_once(workers: int, groups: list[list[int]]) -> None:
    factory = Factory()
    done = list(map_groups(Work(factory), groups, compute(workers)))
    assert sorted(handled.results for handled in done) == groups
    assert sorted(factory.groups) == groups
    assert factory.made <= 2


@pytest.mark.usefixtures("_two_cores")
def test_each_core_handles_a_group_with_one_thread_of_torch() -> None:
    """Two workers wait for each other, so the test ends only if both workers run at the same time."""
    meeting, factory = threading.Barrier(2, timeout=30), Factory()

    def make() -> Callable[[Sequence[int]], object]:
        handle = factory()

        def meet(group: Sequence[int]) -> None:
            meeting.wait()
            handle(group)

        return meet

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert len(list(map_groups(Work(make), [[1], [2]], compute()))) == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert (factory.made, factory.torch_threads) == (2, {1})


def test_with_a_gpu_there_is_one_worker() -> None:
    factory = Factory()
    on_gpu = replace(ONE_WORKER, gpus_per_worker=1)
    assert [handled.results for handled in map_groups(Work(factory), [[1], [2, 3], [4]], on_gpu)] == [[1], [2, 3], [4]]
    assert (factory.made, factory.groups) == (1, [[1], [2, 3], [4]])


def test_with_a_gpu_exactly_one_group_is_loaded_ahead() -> None:
    loaded_ahead = list[int]()

    def handle(group: Sequence[int]) -> None:
        deadline = time.monotonic() + 30
        while len(work.loads) < min(2 * (group[0] // 2 + 1 + 1), 8) and time.monotonic() < deadline:
            time.sleep(0.001)
        loaded_ahead.append(len(work.loads))

    work = Work(lambda: handle)
    on_gpu = replace(ONE_WORKER, gpus_per_worker=1)
    list(map_groups(work, [[0, 1], [2, 3], [4, 5], [6, 7]], on_gpu))
    assert loaded_ahead == [4, 6, 8, 8]


@pytest.mark.parametrize("gpus", [0, 1])
def test_an_item_that_cannot_be_loaded_does_not_affect_others(gpus: int) -> None:
    factory = Factory()
    here = replace(ONE_WORKER, gpus_per_worker=gpus)
    done = list(map_groups(Work(factory), [[1, -2, 3], [-4], [5]], here))
    assert sorted(factory.groups) == [[1, 3], [5]]
    bad = [(item, error.code, error.reason) for handled in done for item, error in handled.bad]
    assert sorted(bad) == [(-4, "negative", "-4 is below 0"), (-2, "negative", "-2 is below 0")]


@pytest.mark.usefixtures("_two_cores")
def test_an_error_in_a_worker_is_raised_and_no_more_groups_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the error of one worker, no group may start.

    The other worker waits until no more groups are assigned.
    """
    stopped, begun = threading.Event(), list[int]()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait=wait)

    def handle(group: Sequence[int]) -> None:
        begun.extend(group)
        if 13 in group:
            raise ValueError("unlucky")
        assert stopped.wait(timeout=30)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    with pytest.raises(ValueError, match="unlucky"):
        list(map_groups(Work(lambda: handle), [[13], *([k] for k in range(100, 400))], compute()))
    assert len(begun) <= 1 + 2  # the failed group, and one group in each of two threads


@pytest.mark.usefixtures("_two_cores")
def test_the_error_of_the_first_failed_group_is_raised() -> None:
    second_failed = threading.Event()

    def handle(group: Sequence[int]) -> None:
        if group == [2]:
            second_failed.set()
        assert second_failed.wait(timeout=30)
        raise ValueError(f"group {group}")

    with pytest.raises(ValueError, match=r"group \[1\]"):
        list(map_groups(Work(lambda: handle), [[1], [2], [3]], compute()))


def test_an_error_in_creating_a_worker_is_raised_unchanged() -> None:
    def make() -> Callable[[Sequence[int]], object]:
        raise ValueError("no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        list(map_groups(Work(make), [[1], [2]], compute()))


def test_one_worker_trains_in_this_process(tmp_path: Path) -> None:
    trained: list[str] = []
    launch(trained.append, "run", compute(), name="x", storage=tmp_path)
    assert trained == ["run"]


def test_less_than_one_worker_is_rejected() -> None:
    with pytest.raises(ValueError, match="compute.workers is 0; it must be at least 1"):
        compute(0)
    assert compute(10**6).threads == 1
