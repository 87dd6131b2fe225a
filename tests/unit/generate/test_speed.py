"""The speed excludes the first video, which includes the warm-up, and the time between the chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from causvid.generate import speed
from causvid.generate.enlarging import Frames
from causvid.generate.speed import Stopwatch


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def video(clock: Clock, *seconds: float) -> Callable[[], Iterator[Frames]]:
    """Return a maker of a video with a chunk of 4 frames after each of ``seconds``. The maker itself takes a second."""

    def make() -> Iterator[Frames]:
        clock.now += 1
        return chunks()

    def chunks() -> Iterator[Frames]:
        for each in seconds:
            clock.now += each
            yield np.zeros((4, 2, 2, 3), np.uint8)

    return make


def use(clock: Clock, watch: Stopwatch, *videos: Callable[[], Iterator[Frames]]) -> None:
    for each in videos:
        for _ in watch.timed(each):
            clock.now += 1000  # the time to write a chunk


def test_no_video_has_no_speed() -> None:
    assert Stopwatch().describe("CPU") == ""


def test_the_speed_of_one_video_includes_the_warm_up(clock: Clock) -> None:
    watch = Stopwatch()
    use(clock, watch, video(clock, 1, 2))
    said = "first frame after 2 s, 2 frames per second (CPU; one video, including the warm-up)"
    assert watch.describe("CPU") == said


def test_the_speed_of_several_videos_is_the_median_without_the_first(clock: Clock) -> None:
    watch = Stopwatch()
    use(clock, watch, video(clock, 50, 50), video(clock, 1, 2))
    assert (
        watch.describe("X")
        == "first frame after 2 s, 2 frames per second (X; one video after a warm-up with another one)"
    )
    use(clock, watch, video(clock, 0.5, 0.5), video(clock, 3, 4))
    said = "first frame after 2 s, 2 frames per second (X; median of 3 videos after a warm-up with another one)"
    assert watch.describe("X") == said


def test_a_video_that_was_not_finished_is_not_counted(clock: Clock) -> None:
    watch = Stopwatch()
    stopped = watch.timed(video(clock, 1, 2))
    next(stopped)
    stopped.close()
    assert watch.describe("CPU") == ""
