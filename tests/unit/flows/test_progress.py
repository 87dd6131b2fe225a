"""Log lines of a stage move its progress bar on Prefect's page."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from flows import progress
from flows.progress import LINE, ProgressBar


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of positions of the bar in percent, in the order of the updates."""
    seen: list[float] = []

    def create(percent: float, **_: Any) -> UUID:
        seen.append(percent)
        return uuid4()

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", lambda _, progress: seen.append(progress))
    return seen


@pytest.mark.parametrize("line", ["train: 1/0, 2 s left", "train: 3/4", "1/4, 2 s left", "train: x/4, 2 s left", ""])
def test_other_lines_do_not_update_the_bar(moves: list[float], line: str) -> None:
    assert LINE.fullmatch(line) is None
    bar = ProgressBar("train")
    bar(line)
    bar.done()
    assert moves == []


def test_the_bar_is_updated_at_intervals_and_ends_at_100_percent(
    moves: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = ProgressBar("evaluate@dmd")
    assert bar.key == "progress-evaluate-dmd"
    bar("frames: 10/40, 7 s left")
    bar("frames: 12/40, 7 s left")  # this line comes before the end of the update interval
    monkeypatch.setattr(progress, "EVERY", 0.0)
    bar("frames: 30/40, 2 s left, student_loss 0.434, critic_loss 0.4")
    bar("more: 50/40, 0 s left")
    bar.done()
    assert moves == [25, 75, 100, 100]


def test_a_server_that_does_not_answer_raises_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> UUID:
        raise httpx.ConnectError("restarting")

    monkeypatch.setattr(progress, "create_progress_artifact", fail)
    bar = ProgressBar("train")
    bar("train: 1/4, 3 s left")
    bar.done()
    assert bar.artifact is None
