"""Tests of the race between teacher and student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.reporting import race

MEASURED: dict[str, Any] = {
    "teacher": {"seconds": 0.3, "ready_s": [0.3], "frames": [33]},
    "student": {"seconds": 0.2, "ready_s": [0.06, 0.12, 0.2], "frames": [9, 12, 12]},
}
VIDEOS = {"teacher": Path("teacher.mp4"), "student": Path("student.mp4")}


def test_a_frame_is_shown_when_its_block_is_finished_and_the_video_has_reached_it() -> None:
    found = race.race(MEASURED, VIDEOS, "a red square", fps=8.0)
    assert found.factor == 10
    teacher, student = found.lanes
    assert teacher.parts == (race.Part(ready=3.0, shown=3.0, start=0.0, end=33 / 8, measured=0.3),)
    assert [part.ready for part in student.parts] == pytest.approx([0.6, 1.2, 2.0])
    # The blocks are finished before the video reaches them, so that the video plays without a pause.
    assert [part.shown for part in student.parts] == pytest.approx([0.6, 0.6 + 9 / 8, 0.6 + 21 / 8])
    assert found.seconds == pytest.approx(3.0 + 33 / 8 + race.HOLD)
    assert found.note == "The clock runs 10 times slower than the measured time."


def test_a_video_waits_for_a_late_block() -> None:
    slow = {**MEASURED, "student": {"seconds": 9.0, "ready_s": [0.1, 0.4], "frames": [8, 8]}}
    parts = race.race(slow, VIDEOS, "a red square", fps=8.0).lanes[1].parts
    assert [part.shown for part in parts] == [1.0, 4.0]


@given(st.floats(1e-4, 1e4))
def test_the_teacher_takes_about_four_seconds(seconds: float) -> None:
    shown = race.clock_factor(seconds) * seconds
    assert shown * (1 + 1e-9) > race.TEACHER_WAIT / 2.5
    assert shown <= race.TEACHER_WAIT


@pytest.mark.parametrize(
    ("seconds", "note"),
    [(3.0, "at the measured speed"), (219.2, "100 times faster than"), (0.05, "50 times slower than")],
)
def test_the_note_says_how_fast_the_clock_runs(seconds: float, note: str) -> None:
    measured = {**MEASURED, "teacher": {"seconds": seconds, "ready_s": [seconds], "frames": [33]}}
    assert note in race.race(measured, VIDEOS, "a red square", fps=8.0).note
