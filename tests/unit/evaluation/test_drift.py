from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.data.videos.manifest import NAME, write_rows
from causvid.data.videos.video_writer import write_video
from causvid.evaluation.drift import blocks_of, drift, statistics, window_starts
from causvid.runtime.shapes import VideoShape

WINDOW = 9
BLOCKS = [range(5), range(5, 9)]  # frames of the two blocks of a window
CAPTION = "a yellow circle moves right over a gray background"
Frames = NDArray[np.uint8]


def rollout(frames: int = 3 * WINDOW) -> Frames:
    video = VideoShape(height=32, width=32, frames=frames, fps=8)
    return toy_world.render(toy_world.parse(CAPTION), video=video, start_xy=(5.0, 12.0), radius=6.0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_rollouts(*videos: Frames, caption: str = CAPTION) -> Path:
        folder = tmp_path / "rollouts"
        folder.mkdir()
        for number, frames in enumerate(videos):
            write_video(folder / f"{number}.mp4", frames, fps=8, crf=10)
        rows = [{"path": f"{n}.mp4", "caption": caption, "frames": len(f)} for n, f in enumerate(videos)]
        write_rows(folder / NAME, rows)
        return tmp_path

    return write_rollouts


def test_a_steady_rollout_does_not_drift(write: Callable[..., Path]) -> None:
    found = drift(write(rollout(), rollout()), WINDOW, BLOCKS)
    assert found is not None
    assert (found["n"], found["windows"], found["window_frames"]) == (2, 3, WINDOW)
    for values in found["statistics"].values():
        assert len(values["windows"]) == 3
        assert values["change"] == pytest.approx(0, abs=0.01)
    assert [window["n"] for window in found["judge"]] == [2, 2, 2]
    assert all(window[name] == 1 for window in found["judge"] for name in ("colour", "shape", "motion", "velocity"))


def test_a_fade_to_black_is_measured(write: Callable[..., Path]) -> None:
    frames = rollout()
    fading = np.linspace(1, 0, len(frames))[:, None, None, None]
    found = drift(write((frames * fading).astype(np.uint8)), WINDOW, BLOCKS)
    assert found is not None
    brightness = found["statistics"]["brightness"]
    assert brightness["windows"] == sorted(brightness["windows"], reverse=True)
    assert brightness["change"] < -0.2
    assert found["statistics"]["saturation"]["change"] < -0.03
    sharpness = found["statistics"]["sharpness"]["windows"]
    assert sharpness[-1] < 0.5 * sharpness[0]
    assert found["judge"][0]["background"] == 1
    assert found["judge"][-1]["background"] == found["judge"][-1]["colour"] == 0


def test_the_judge_detects_an_object_that_disappears(write: Callable[..., Path]) -> None:
    frames = rollout()
    frames[2 * WINDOW :] = toy_world.BACKGROUNDS["gray"]
    found = drift(write(frames), WINDOW, BLOCKS)
    assert found is not None
    assert [window["seen"] for window in found["judge"]] == [1, 1, 0]
    seen = [block["seen"] for block in found["blocks"]]
    # The fifth block contains frames 17 to 20, and the object disappears at frame 18.
    assert seen == [1, 1, 1, 1, pytest.approx(1 / 4), 0]
    assert found["judge"][2]["area_cv"] is None


def test_other_captions_have_statistics_but_no_judge(write: Callable[..., Path]) -> None:
    found = drift(write(rollout(), caption="a dog"), WINDOW, BLOCKS)
    assert found is not None
    assert found["judge"] is None
    assert found["blocks"] is None
    assert found["statistics"]["brightness"]["windows"]


def test_no_rollout_or_a_single_window_gives_none(tmp_path: Path, write: Callable[..., Path]) -> None:
    assert drift(tmp_path, WINDOW, BLOCKS) is None
    assert drift(write(rollout(WINDOW)), WINDOW, BLOCKS) is None


def test_rollouts_of_unequal_length_are_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="9, 27 frames"):
        drift(write(rollout(WINDOW), rollout(3 * WINDOW)), WINDOW, BLOCKS)


def test_later_blocks_are_as_long_as_the_last_block_of_a_clip() -> None:
    assert blocks_of(27, BLOCKS) == [range(5), range(5, 9), range(9, 13), range(13, 17), range(17, 21), range(21, 25)]
    assert blocks_of(25, BLOCKS)[-1] == range(21, 25)
    assert blocks_of(9, [range(9)]) == [range(9)]


def test_statistics_in_closed_form() -> None:
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    frames[:, :, 2:, 0] = 255  # the right half of each frame is red
    assert statistics(frames) == pytest.approx(
        {"brightness": 1 / 6, "saturation": 1 / 2, "sharpness": (1 / 3 / 3 + 0) / 2}, abs=1e-6
    )


@given(window=st.integers(1, 40), windows=st.integers(1, 6), short=st.integers(0, 20))
def test_windows_cover_the_rollout_exactly(window: int, windows: int, short: int) -> None:
    frames = max(1, windows * window - min(short, (window - 1) // 2))
    starts = window_starts(frames, window)
    assert len(starts) == windows
    assert starts[0] == 0
    assert starts == sorted(starts)
    if frames >= window:
        assert starts[-1] + window == frames
        assert all(after - before <= window for before, after in pairwise(starts))
