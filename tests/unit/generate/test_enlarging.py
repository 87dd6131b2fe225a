"""Frames are enlarged frame by frame, up to the largest size of x264."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from causvid.generate.enlarging import Frames, enlarged, require_scale
from causvid.runtime.shapes import VideoShape


def test_each_pixel_becomes_a_square_and_each_frame_a_chunk() -> None:
    frames = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    chunks = list(enlarged(iter([frames[:2], frames[2:]]), 4))
    assert [len(chunk) for chunk in chunks] == [1] * 5
    found = np.concatenate(chunks)
    assert found.shape == (5, 8, 12, 3)
    for row, column in np.ndindex(8, 12):
        assert np.array_equal(found[:, row, column], frames[:, row // 4, column // 4])


def test_a_chunk_is_requested_when_the_frames_before_it_are_used() -> None:
    requested = []

    def chunks() -> Iterator[Frames]:
        for number in range(3):
            requested.append(number)
            yield np.zeros((2, 2, 2, 3), np.uint8)

    frames = enlarged(chunks(), 2)
    next(frames)
    next(frames)
    assert requested == [0]


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (0, "--scale is 0; it must be at least 1"),
        (-2, "--scale is -2; it must be at least 1"),
        (257, "enlarges the width of 64 pixels to 16448, but x264 encodes at most 16384: choose at most 256"),
        (600, "enlarges the height of 32 pixels to 19200, .* choose at most 256"),
    ],
)
def test_an_invalid_scale_is_refused(scale: int, said: str) -> None:
    shape = VideoShape(height=32, width=64, frames=5, fps=8)
    with pytest.raises(ValueError, match=said):
        require_scale(scale, shape)
    require_scale(256, shape)
