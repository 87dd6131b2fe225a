"""Groups of work in this process; Ray has a test of its own among the pipeline's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from causvid.runtime.parallel import Compute, Worker, launch, map_groups


def compute(workers: int = 1) -> Compute:
    return Compute(workers=workers, gpus_per_worker=0, gradient_checkpointing=False)


class Factory:
    """Makes workers that note their groups and fail on one that holds 13."""

    def __init__(self) -> None:
        self.made, self.groups = 0, list[Sequence[int]]()

    def __call__(self) -> Worker[int]:
        self.made += 1
        return self.handle

    def handle(self, group: Sequence[int]) -> None:
        if 13 in group:
            raise ValueError("unlucky")
        self.groups.append(group)


@pytest.mark.parametrize(("workers", "groups"), [(1, [[1, 2], [3], [4, 5, 6]]), (2, [[1, 2]])])
def test_one_worker_handles_every_group_in_order(workers: int, groups: list[list[int]]) -> None:
    factory = Factory()
    done = list(map_groups(factory, groups, compute(workers)))
    assert done == [len(group) for group in groups]
    assert factory.groups == groups
    assert factory.made == 1


def test_a_group_is_done_when_it_is_yielded() -> None:
    factory = Factory()
    running = map_groups(factory, [[1], [2]], compute())
    assert next(running) == 1
    assert factory.groups == [[1]]


def test_an_error_in_a_worker_is_raised_here() -> None:
    factory = Factory()
    with pytest.raises(ValueError, match="unlucky"):
        list(map_groups(factory, [[1], [13], [2]], compute()))
    assert factory.groups == [[1]]


def test_one_worker_trains_in_this_process(tmp_path: Path) -> None:
    jobs: list[str] = []
    launch(jobs.append, "job", compute(), name="x", storage=tmp_path)
    assert jobs == ["job"]


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="compute.workers is 0; it must be at least 1"):
        compute(0)
    assert compute(10**6).threads == 1
