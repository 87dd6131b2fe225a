"""Tiles cover the frame, and blending the tiles of a frame gives the original frame."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from causvid.wan.vae.tiles import Window, blend, windows


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 10), st.integers(0, 40))
def test_tiles_cover_the_frame(height: int, width: int, overlap: int, more: int) -> None:
    longest = 4 * overlap + more
    found = windows(height, width, longest=longest, overlap=overlap)
    for axis, length in enumerate((height, width)):
        spans = sorted({window[axis] for window in found})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert len({stop - start for start, stop in spans}) == 1
        assert spans[0][1] <= longest
        assert all(before[1] - after[0] >= overlap for before, after in pairwise(spans))
        assert all(first[1] <= third[0] for first, third in zip(spans, spans[2:], strict=False))
        assert (
            len(spans) == 1 or (len(spans) - 1) * (longest - overlap) + overlap < length
        )  # fewer tiles would not cover the length
    assert len(found) == len(set(found))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3))
def test_blending_the_tiles_of_a_frame_gives_the_frame(height: int, width: int, scale: int) -> None:
    frame = torch.rand(2, 3, scale * height, scale * width, generator=torch.Generator().manual_seed(0))
    parts = [(window, window.of(frame, scale)) for window in windows(height, width, longest=16, overlap=4)]
    torch.testing.assert_close(blend(parts, scale), frame)


def test_weights_change_linearly_between_neighbours() -> None:
    left, right = Window((0, 1), (0, 6)), Window((0, 1), (2, 8))
    faded = blend([(left, torch.zeros(1, 6)), (right, torch.ones(1, 6))])
    torch.testing.assert_close(faded, torch.tensor([[0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]]))
