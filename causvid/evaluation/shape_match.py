"""Which of the toy world's shapes an object has: its mean picture against templates of every size, place and sharpness.

Pictures are in the world's own units, pixels of a 32-pixel video, around the object's centre, so a template serves
videos of every size. Averaged over its frames, an object loses noise and flicker; a template's blur is free, so that a
blurred or slightly trembling shape is still that shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.runtime.shapes import VideoShape

Floats = NDArray[np.float64]

REACH = 10  # world pixels from the centre to the picture's edge; the largest triangle's corners are 9.4 away
CANVAS = VideoShape(height=32, width=32, frames=1, fps=1)  # the world at its own size
RADII = np.geomspace(0.6, 1.65, 40)  # of the mean radius: areas from a third of the usual one to three times it
OFFSETS = (-0.5, 0.0, 0.5)  # world pixels: an object that is not quite whole has its centre of mass elsewhere
BLURS = (0.0, 0.5, 0.8, 1.1)  # standard deviations in world pixels
# Real clips reach 0.97, reconstructions of 26 dB 0.95; halves and two thirds of a shape 0.62 to 0.92, triangles with a
# round top 0.90 to 0.93, then nearest to a circle.
MIN_MATCH = 0.92


@dataclass(frozen=True, kw_only=True)
class Match:
    """The best-fitting template of one shape: its match in [0, 1] and its radius in world pixels."""

    match: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class _Bank:
    shape: NDArray[np.intp]  # [N] index into SHAPES
    radius: Floats  # [N]
    picture: Floats  # [N, P]
    energy: Floats  # [N]


def mean_picture(coverage: Floats, centers: Floats, scale: float) -> Floats:
    """The mean over frames of coverage [F, H, W] around centers [F, 2] as (x, y), on the torus.

    ``scale`` is the video's pixels per world pixel. Returns [2 REACH + 1, 2 REACH + 1].
    """
    rows = _window(coverage.shape[1], centers[:, 1], scale)
    columns = _window(coverage.shape[2], centers[:, 0], scale)
    picture: Floats = (rows @ coverage @ columns.transpose(0, 2, 1)).mean(axis=0)
    return picture


def _window(size: int, center: Floats, scale: float) -> Floats:
    """Weights [F, 2 REACH + 1, size] of linear interpolation; larger videos are averaged over a world pixel."""
    places = center[:, None, None] + np.arange(-REACH, REACH + 1)[None, :, None] * scale
    away = np.abs((np.arange(size) - places + size / 2) % size - size / 2)
    reach = max(1.0, scale)
    weights: Floats = np.maximum(0.0, 1.0 - away / reach) / reach
    return weights


def match_shapes(picture: Floats) -> dict[str, Match]:
    """The best match of every shape with a picture of ``mean_picture``.

    A match is the overlap <a, b> / (<a, a> + <b, b> - <a, b>), which is intersection over union where all is 0 or 1.
    """
    bank = _bank()
    flat = picture.ravel()
    common = bank.picture @ flat
    overlap = common / (flat @ flat + bank.energy - common)
    found = {}
    for index, shape in enumerate(toy_world.SHAPES):
        best = int(np.where(bank.shape == index, overlap, -1.0).argmax())
        found[shape] = Match(match=float(overlap[best]), radius=float(bank.radius[best]))
    return found


@cache
def _bank() -> _Bank:
    mean_radius = sum(toy_world.radius_range(CANVAS)) / 2
    middle = CANVAS.width // 2
    centers = np.array([(middle + dx, middle + dy) for dy in OFFSETS for dx in OFFSETS])
    inside = slice(middle - REACH, middle + REACH + 1)
    shapes, radii, pictures = [], [], []
    for index, shape in enumerate(toy_world.SHAPES):
        for radius in RADII * mean_radius:
            masks = toy_world.shape_mask(shape, CANVAS.height, CANVAS.width, centers, radius)[:, inside, inside]
            for blur in BLURS:
                pictures.append((_gaussian(blur) @ masks @ _gaussian(blur).T).reshape(len(centers), -1))
                shapes += [index] * len(centers)
                radii += [radius] * len(centers)
    picture = np.concatenate(pictures)
    return _Bank(
        shape=np.array(shapes), radius=np.array(radii), picture=picture, energy=np.einsum("np,np->n", picture, picture)
    )


def _gaussian(deviation: float) -> Floats:
    """Blur of a picture's rows as a matrix, [2 REACH + 1, 2 REACH + 1]; zero outside."""
    if deviation == 0:
        return np.eye(2 * REACH + 1)
    away = np.arange(2 * REACH + 1)[:, None] - np.arange(2 * REACH + 1)
    weights = np.exp(-0.5 * (away / deviation) ** 2)
    whole = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / deviation) ** 2).sum()
    blur: Floats = weights / whole
    return blur
