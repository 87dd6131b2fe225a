"""Measure the speed at which videos are generated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from causvid.generate.enlarging import Frames


class Stopwatch:
    """Measures the time to the first frame and the frames per second of videos, without the time to write files.

    The first video of a process takes longer, because torch prepares its kernels. If there are several videos, the
    first video is therefore not counted.

    Attributes:
        first: Seconds from the prompt to the first frames of each video.
        rates: Frames per second of each video.
    """

    def __init__(self) -> None:
        self.first: list[float] = []
        self.rates: list[float] = []

    def timed(self, make: Callable[[], Iterator[Frames]]) -> Iterator[Frames]:
        """Yield the chunks of one video, and measure the time that ``make`` and each chunk take."""
        started = time.perf_counter()
        chunks = make()
        seconds, first, frames = 0.0, 0.0, 0
        while (chunk := next(chunks, None)) is not None:
            seconds += time.perf_counter() - started
            first = first or seconds
            frames += len(chunk)
            yield chunk
            started = time.perf_counter()
        self.first.append(first)
        self.rates.append(frames / seconds)

    def describe(self, device: str) -> str:
        """Return the medians over the videos in one line; empty if there were no videos.

        Args:
            device: Name of the device.
        """
        if not self.rates:
            return ""
        counted = slice(1 if len(self.rates) > 1 else 0, None)
        first, rate = statistics.median(self.first[counted]), statistics.median(self.rates[counted])
        number = len(self.rates[counted])
        videos = f"median of {number} videos" if number > 1 else "one video"
        videos += ", including the warm-up" if len(self.rates) == 1 else " after a warm-up with another one"
        return f"first frame after {first:.2g} s, {rate:.3g} frames per second ({device}; {videos})"
