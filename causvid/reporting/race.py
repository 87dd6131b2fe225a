"""Show when teacher and student finish the frames of a clip: the race of the report.

The race has a clock that runs slower or faster than the measured time by a constant factor, so that the teacher takes a
few seconds. The videos play at their own rate. A frame is shown as soon as its block was finished on the clock. If a
block is not finished in time, the video waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

TEACHER_WAIT = 4.0  # approximate time in seconds that the page shows until the clip of the teacher is ready
HOLD = 1.5  # seconds after the end of the last video
STEPS = (1, 2, 5)  # the factor of the clock is one of these numbers, multiplied or divided by a power of ten


class Part(NamedTuple):
    """Frames of a video that appear together. All times are in seconds of the page.

    Attributes:
        ready: Time at which the frames are finished.
        shown: Time at which the video shows the first of the frames.
        start: Position of the first frame in the video.
        end: Position of the end of the last frame in the video.
        measured: Measured seconds until the frames were finished.
    """

    ready: float
    shown: float
    start: float
    end: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The video of a model in the race, and its parts."""

    label: str
    video: Path
    parts: tuple[Part, ...]

    def frame_at(self, now: float, *, count: int) -> int | None:
        """Return the index of the frame that the video shows at ``now``; None before the first frame.

        Args:
            now: Time in seconds of the page.
            count: Number of frames of the video.
        """
        begun = [part for part in self.parts if now >= part.shown]
        if not begun:
            return None
        part = begun[-1]
        position = min(part.start + now - part.shown, part.end)
        frame = int(position / self.parts[-1].end * count + 1e-6)
        last = round(part.end / self.parts[-1].end * count) - 1
        return min(frame, last)


@dataclass(frozen=True, kw_only=True)
class Race:
    """The race of teacher and student.

    Attributes:
        caption: Prompt of the videos.
        factor: Number of seconds of the page for one measured second.
        seconds: Length of the race in seconds of the page.
        lanes: Teacher and student.
    """

    caption: str
    factor: float
    seconds: float
    lanes: tuple[Lane, ...]

    @property
    def plan(self) -> dict[str, Any]:
        """The times, for the script of the page."""
        lanes = [[part._asdict() for part in lane.parts] for lane in self.lanes]
        return {"factor": self.factor, "seconds": self.seconds, "decimals": self.decimals, "lanes": lanes}

    @property
    def decimals(self) -> int:
        """Number of decimals of the clock, so that the longest time has three digits."""
        longest = max(part.measured for lane in self.lanes for part in lane.parts)
        return max(0, math.ceil(2 - math.log10(longest)))

    @property
    def note(self) -> str:
        """A sentence about the clock."""
        if self.factor == 1:
            return "The clock runs at the measured speed."
        times, direction = (self.factor, "slower") if self.factor > 1 else (1 / self.factor, "faster")
        return f"The clock runs {times:,.0f} times {direction} than the measured time."


def race(measured: Mapping[str, Any], videos: Mapping[str, Path], caption: str, *, fps: float) -> Race:
    """Plan a race.

    Args:
        measured: Result of ``evaluation.latency.compare``.
        videos: Maps the keys "teacher" and "student" in ``measured`` to a video, in the order of the page.
        caption: Prompt of the videos.
        fps: Frames per second of the videos.
    """
    factor = clock_factor(measured["teacher"]["seconds"])
    lanes = []
    for name, video in videos.items():
        found = measured[name]
        lanes.append(Lane(label=name, video=video, parts=_parts(found["ready_s"], found["frames"], factor, fps)))
    end = max(lane.parts[-1].shown + lane.parts[-1].end - lane.parts[-1].start for lane in lanes)
    return Race(caption=caption, factor=factor, seconds=end + HOLD, lanes=tuple(lanes))


def clock_factor(seconds: float) -> float:
    """Return the round number that brings ``seconds``, multiplied by it, closest to ``TEACHER_WAIT`` from below."""
    factors = [step * 10.0**power for power in range(-6, 7) for step in STEPS]
    return max((factor for factor in factors if factor * seconds <= TEACHER_WAIT), default=factors[0])


def _parts(ready_s: Sequence[float], frames: Sequence[int], factor: float, fps: float) -> tuple[Part, ...]:
    ends = [count / fps for count in accumulate(frames)]
    starts = [0.0, *ends[:-1]]
    parts: list[Part] = []
    for seconds, start, end in zip(ready_s, starts, ends, strict=True):
        before = parts[-1].shown + parts[-1].end - parts[-1].start if parts else 0.0
        ready = factor * seconds
        parts.append(Part(ready=ready, shown=max(ready, before), start=start, end=end, measured=seconds))
    return tuple(parts)
