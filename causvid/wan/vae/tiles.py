"""Frames too large for memory in one piece: overlapping windows, each gone through alone, faded into each other.

A window sees nothing of the others, so a model with attention or statistics over the whole frame gives another result
than in one piece; the fade hides the seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """A part of a frame: rows and columns, each (start, stop) in the cells of some grid."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    def of(self, x: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """This part of ``x`` [..., H, W], which has ``scale`` times as many cells a side as the window's grid."""
        (top, bottom), (left, right) = self
        return x[..., scale * top : scale * bottom, scale * left : scale * right]


def windows(height: int, width: int, *, longest: int, overlap: int) -> list[Window]:
    """As few windows as cover the frame with no side over ``longest`` and neighbours sharing ≥ ``overlap`` cells.

    All are of one size, row by row; the frame itself where it is small enough.
    """
    assert 0 < 4 * overlap <= longest, "no cell may lie in three windows of a row"
    return [Window(*spans) for spans in product(*(_spans(length, longest, overlap) for length in (height, width)))]


def blend(parts: Sequence[tuple[Window, torch.Tensor]], scale: int = 1) -> torch.Tensor:
    """The frame [..., H, W] from what came of each of its ``windows``: one fades out where its neighbour fades in.

    The parts have ``scale`` times as many cells a side as the windows' grid.
    """
    rows, columns = (sorted({window[axis] for window, _ in parts}) for axis in (0, 1))
    first = parts[0][1]
    frame = first.new_zeros(*first.shape[:-2], scale * rows[-1][1], scale * columns[-1][1])
    for window, part in parts:
        down, across = _fade(window.rows, rows, scale).to(part), _fade(window.columns, columns, scale).to(part)
        window.of(frame, scale).add_(part * down[:, None] * across)
    return frame


def _spans(length: int, longest: int, overlap: int) -> list[tuple[int, int]]:
    if length <= longest:
        return [(0, length)]
    count = ceil((length - overlap) / (longest - overlap))
    size = ceil((length + (count - 1) * overlap) / count)
    starts = [number * (length - size) // (count - 1) for number in range(count)]
    return [(start, start + size) for start in starts]


def _fade(span: tuple[int, int], spans: Sequence[tuple[int, int]], scale: int) -> torch.Tensor:
    """Weights of the cells of ``span``; over all ``spans`` those of a cell add up to 1."""
    weights = torch.ones(scale * (span[1] - span[0]))
    place = spans.index(span)
    if place > 0:
        shared = scale * (spans[place - 1][1] - span[0])
        weights[:shared] = (torch.arange(shared) + 0.5) / shared
    if place + 1 < len(spans):
        shared = scale * (span[1] - spans[place + 1][0])
        weights[-shared:] = 1 - (torch.arange(shared) + 0.5) / shared
    return weights
