"""Recognise the toy world's shapes: compare the mean image of an object with templates of many sizes and blurs.

The centre of the object is in the middle of the mean image. World pixels are the pixels of a video of 32 x 32 pixels.
Mean images and templates consist of world pixels, so that one set of templates is enough for videos of all sizes. The
mean over the frames removes noise and flicker. Some templates are blurred, so that a blurred or slightly trembling
shape is still recognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.runtime.shapes import VideoShape

Floats = NDArray[np.float64]

# World pixels from the centre to the edge of an image. The corners of the largest triangle are 9.4 world pixels from
# its centre.
REACH = 10
CANVAS = VideoShape(height=32, width=32, frames=1, fps=1)  # a frame whose pixels are world pixels
RADII = np.geomspace(0.6, 1.65, 40)  # radii divided by the mean radius; the areas are 1/3 to 3 times the mean area
# Shifts of the templates in world pixels, because the centre of mass of a slightly incomplete object is shifted.
OFFSETS = (-0.5, 0.0, 0.5)
BLURS = (0.0, 0.5, 0.8, 1.1)  # standard deviations of the blur in world pixels
# Smallest match of a recognised shape. Measured matches: 0.97 for real clips, 0.95 for reconstructions with a PSNR of
# 26 dB, 0.62 to 0.92 for a half or two thirds of a shape, 0.90 to 0.93 for triangles with a round top, whose best
# template is a circle.
MIN_MATCH = 0.92


@dataclass(frozen=True, kw_only=True)
class Match:
    """The best template of one shape.

    Attributes:
        match: Match in [0, 1], defined in ``match_shapes``.
        radius: Radius of the template in world pixels.
    """

    match: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class _Bank:
    """N templates of P pixels.

    Attributes:
        shape: Index into SHAPES, [N].
        radius: Radius in world pixels, [N].
        picture: Coverage of the pixels, [N, P].
        energy: Sum of the squares of the coverage, [N].
    """

    shape: NDArray[np.intp]
    radius: Floats
    picture: Floats
    energy: Floats


def mean_picture(coverage: Floats, centers: Floats, scale: float) -> Floats:
    """Return the mean over the frames of the coverage around the object's centre on the torus.

    Args:
        coverage: Coverage of every pixel, [F, H, W].
        centers: Centres of the object as (x, y), [F, 2].
        scale: Pixels of the video per world pixel.

    Returns:
        The mean image in world pixels, [2 REACH + 1, 2 REACH + 1].
    """
    rows = _window(coverage.shape[1], centers[:, 1], scale)
    columns = _window(coverage.shape[2], centers[:, 0], scale)
    picture: Floats = (rows @ coverage @ columns.transpose(0, 2, 1)).mean(axis=0)
    return picture


def _window(size: int, center: Floats, scale: float) -> Floats:
    """Return weights [F, 2 REACH + 1, size] that interpolate linearly or, if ``scale`` > 1, average a world pixel."""
    places = center[:, None, None] + np.arange(-REACH, REACH + 1)[None, :, None] * scale
    away = np.abs((np.arange(size) - places + size / 2) % size - size / 2)
    reach = max(1.0, scale)
    weights: Floats = np.maximum(0.0, 1.0 - away / reach) / reach
    return weights


def match_shapes(picture: Floats) -> dict[str, Match]:
    """Return the best template of every shape for an image that ``mean_picture`` returned.

    The match of an image a and a template b is <a, b> / (<a, a> + <b, b> - <a, b>). For binary images, this is the
    intersection over union.
    """
    bank = _bank()
    flat = picture.ravel()
    common = bank.picture @ flat
    overlap = common / (flat @ flat + bank.energy - common)
    matches = {}
    for index, shape in enumerate(toy_world.SHAPES):
        best = int(np.where(bank.shape == index, overlap, -1.0).argmax())
        matches[shape] = Match(match=float(overlap[best]), radius=float(bank.radius[best]))
    return matches


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
    """Return the matrix [2 REACH + 1, 2 REACH + 1] that blurs the columns of an image with zeros outside the image."""
    if deviation == 0:
        return np.eye(2 * REACH + 1)
    away = np.arange(2 * REACH + 1)[:, None] - np.arange(2 * REACH + 1)
    weights = np.exp(-0.5 * (away / deviation) ** 2)
    total = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / deviation) ** 2).sum()
    blur: Floats = weights / total
    return blur
