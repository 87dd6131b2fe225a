"""Tests of the race between teacher and student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from causvid.data.videos.video_writer import write_video
from causvid.reporting import race, race_picture

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


def test_the_frames_follow_the_plan() -> None:
    """The student shows its first block from 0.6 s on, and every frame for an eighth of a second."""
    teacher, student = race.race(MEASURED, VIDEOS, "a red square", fps=8.0).lanes
    assert [student.frame_at(now, count=33) for now in (0.5, 0.6, 0.6 + 1 / 8, 0.6 + 9 / 8, 20.0)] == [
        None,
        0,
        1,
        9,
        32,
    ]
    assert [teacher.frame_at(now, count=33) for now in (2.9, 3.0, 20.0)] == [None, 0, 32]


def test_a_late_block_holds_the_last_frame_of_the_block_before() -> None:
    slow = {**MEASURED, "student": {"seconds": 9.0, "ready_s": [0.1, 0.4], "frames": [8, 8]}}
    lane = race.race(slow, VIDEOS, "a red square", fps=8.0).lanes[1]
    assert [lane.frame_at(now, count=16) for now in (1.0, 1.99, 3.0, 4.0)] == [0, 7, 7, 8]


def test_the_picture_shows_the_frames_and_repeats(tmp_path: Path) -> None:
    """The teacher's place is grey until its clip is ready. Both videos have their own brightness."""
    videos = {}
    for name, level in (("teacher", 60), ("student", 200)):
        videos[name] = tmp_path / f"{name}.mp4"
        write_video(videos[name], np.full((33, 32, 32, 3), level, np.uint8), fps=8, crf=10)
    found = race.race(MEASURED, videos, "a red square", fps=8.0)
    for name in ("a.webp", "b.webp"):
        race_picture.draw_race(found, tmp_path / name)
    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.info["loop"] == 0
        levels = []
        for number in (2, 12, picture.n_frames - 1):
            picture.seek(number)
            pixels = np.asarray(picture.convert("L"))
            row = pixels[race_picture.LINE + 96]
            levels.append([int(row[race_picture.GAP + 96]), int(row[2 * race_picture.GAP + 192 + 96])])
    grey = 220
    assert np.abs(np.array(levels) - [[grey, grey], [grey, 200], [60, 200]]).max() < 6
