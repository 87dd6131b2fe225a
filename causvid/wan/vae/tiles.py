"""Split frames that are too large for the memory into overlapping tiles, and blend the processed tiles.

Tiles are processed independently. With attention or statistics over the whole frame, a model therefore gives another
result than without tiles. Blending makes the borders between tiles invisible. The code calls a tile a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """Position of a tile: a range of rows and of columns, each (start, stop), in pixels or in latent pixels."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    def of(self, x: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """Crop ``x`` [..., H, W] to this tile. One pixel of the tile is ``scale`` x ``scale`` pixels of ``x``."""
        (top, bottom), (left, right) = self
        return x[..., scale * top : scale * bottom, scale * left : scale * right]


def windows(height: int, width: int, *, longest: int, overlap: int) -> list[Window]:
    """Split a frame into as few tiles of equal size as possible, and list the tiles row by row.

    Args:
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        longest: Largest side of a tile in pixels. A smaller frame is one tile.
        overlap: Minimum number of pixels that neighbouring tiles share.
    """
    assert 0 < 4 * overlap <= longest, "no pixel may be in three tiles of a row"
    return [Window(*spans) for spans in product(*(_spans(length, longest, overlap) for length in (height, width)))]


def blend(parts: Sequence[tuple[Window, torch.Tensor]], scale: int = 1) -> torch.Tensor:
    """Blend tiles into a frame. Where two tiles overlap, one fades linearly into the other.

    Args:
        parts: All tiles from ``windows``, each with the pixels of the tile [..., h, w].
        scale: One pixel of a tile is ``scale`` x ``scale`` pixels of its part.

    Returns:
        The frame [..., H, W].
    """
    rows, columns = (sorted({window[axis] for window, _ in parts}) for axis in (0, 1))
    first = parts[0][1]
    frame = first.new_zeros(*first.shape[:-2], scale * rows[-1][1], scale * columns[-1][1])
    for window, part in parts:
        down, across = _fade(window.rows, rows, scale).to(part), _fade(window.columns, columns, scale).to(part)
        window.of(frame, scale).add_(part * down[:, None] * across)
    return frame


def _spans(length: int, longest: int, overlap: int) -> list[tuple[int, int]]:
    """Split one side of a frame into equal ranges (start, stop)."""
    if length <= longest:
        return [(0, length)]
    count = ceil((length - overlap) / (longest - overlap))
    size = ceil((length + (count - 1) * overlap) / count)
    starts = [number * (length - size) // (count - 1) for number in range(count)]
    return [(start, start + size) for start in starts]


def _fade(span: tuple[int, int], spans: Sequence[tuple[int, int]], scale: int) -> torch.Tensor:
    """Return the weights of the pixels in ``span``. For each pixel, the weights of all ``spans`` have the sum 1."""
    weights = torch.ones(scale * (span[1] - span[0]))
    place = spans.index(span)
    if place > 0:
        shared = scale * (spans[place - 1][1] - span[0])
        weights[:shared] = (torch.arange(shared) + 0.5) / shared
    if place + 1 < len(spans):
        shared = scale * (span[1] - spans[place + 1][0])
        weights[-shared:] = 1 - (torch.arange(shared) + 0.5) / shared
    return weights
