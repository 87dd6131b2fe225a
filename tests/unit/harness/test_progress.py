"""Progress bars print lines at intervals if the output is a log."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from tqdm import tqdm

from causvid.harness import progress as module
from causvid.harness.progress import interrupted, meter, progress, show


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock. The first entry of the returned list is the number of seconds between two readings."""
    step, now = [3.0], [0.0]

    def tick() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(module.time, "monotonic", tick)
    return step


def test_all_items_are_yielded_and_a_line_is_printed_every_few_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress("abcdefg", total=10, initial=3, what="encode")) == list("abcdefg")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["encode: 5/10, 15 s left", "encode: 7/10, 9 s left", "encode: 9/10, 3 s left"]


def test_fast_work_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    clock[0] = 0.001
    list(progress(range(50), total=50, what="pack"))
    assert capsys.readouterr().err == ""


def test_values_are_printed_beside_the_progress(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for loss in progress([0.5, 0.25, 0.125], total=4, what="train"):
        show({"loss": loss, "critic_loss": 10 * loss})
    assert capsys.readouterr().err.splitlines() == [
        "train: 2/4, 6 s left, loss 0.25, critic_loss 2.5",
    ]


def test_a_bar_on_a_terminal_shows_the_loss_and_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "tqdm", partial(tqdm, mininterval=0))
    for _ in progress(range(3), total=3, what="train"):
        show({"loss": 0.4341})
    written = capsys.readouterr().err
    assert "train" in written
    assert "loss 0.434" in written
    assert written.split("\r")[-1].strip() == ""


def test_the_position_of_interrupted_work_is_known(clock: list[float]) -> None:
    list(progress(range(3), total=3, what="first"))
    assert interrupted() is None
    work = progress(range(5), total=5, what="second", kept=lambda: "all of it is kept")
    for _ in range(3):
        next(work)
    with pytest.raises(KeyboardInterrupt):
        work.throw(KeyboardInterrupt)
    found = interrupted()
    assert found is not None
    assert (found.what, found.position(), found.kept and found.kept()) == ("second", "2 of 5", "all of it is kept")


def test_the_position_is_known_while_a_variable_holds_the_progress(clock: list[float]) -> None:
    def train() -> None:
        steps = progress(range(5), total=5, what="train")
        for step in steps:
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        train()
    found = interrupted()
    assert found is not None
    assert found.position() == "3 of 5"
    assert stop.value.__traceback__ is not None  # the traceback keeps the variables of the function


def test_an_error_in_the_work_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    with pytest.raises(KeyError):
        list(progress(broken(), total=2, what="x"))


def test_bytes_are_printed_with_units(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with meter(total=3 * 10**9, what="Fish.tar", initial=10**9, unit="B") as done:
        done.update(0)
        done.update(500_000_000)
        done.update(1_500_000_000)
    assert capsys.readouterr().err.splitlines() == ["Fish.tar: 1.50GB/3.00GB, 18 s left"]
