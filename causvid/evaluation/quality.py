"""Flicker, and the Frechet distance of two sets of features with an interval.

The distance compares runs of this project with each other; it is no FVD. Its floor falls as the number of videos
grows, so it is read at one fixed number only: with the toy world's VAE, real clips are 0.8 from their own world at 64
videos, 0.4 at 128 and 0.2 at 256. The interval tells how far another draw of videos would move it; the floor stays in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]

CONSTANT = 1e-6  # standard deviation below which a feature says nothing
GROUPS = 10  # of the jackknife
T_QUANTILE = 2.262  # 97.5 % of Student's t with GROUPS - 1 degrees of freedom


def halves(rows: Rows, limit: int) -> tuple[Rows, Rows]:
    """The first ``limit`` rows (or half of them, when they are few) and as many rows after them, never the same ones.

    The distance between the two halves of the real clips is the floor that every other distance is to be read against.
    """
    count = min(limit, len(rows) // 2)
    return rows[: max(1, count)], rows[count : 2 * count]


def mean_flicker(videos: Iterable[NDArray[np.uint8]]) -> float:
    """Mean of the videos' flicker."""
    return float(np.mean([flicker(frames) for frames in videos]))


def flicker(frames: NDArray[np.uint8]) -> float:
    """Mean absolute difference of neighbouring frames, uint8 [F, H, W, 3], as a share of full brightness; 0 if F = 1.

    Motion counts too: compare it with the flicker of real clips, not with 0. VBench's temporal_flickering is 1 - this.
    """
    if len(frames) == 1:
        return 0.0
    # One pair at a time: a long video as wider numbers would fill the memory.
    pairs = zip(frames[1:], frames[:-1], strict=True)
    return float(np.mean([np.abs(after.astype(np.int16) - before).mean() for after, before in pairs])) / 255


def distance(features: Floats, reference: Floats) -> tuple[float, list[float] | None]:
    """Frechet distance of two feature sets [N, D] of equal N, and [low, high] of its 95 % interval.

    The interval is the delete-a-group jackknife's (Kott 2001), None when a group would have fewer than two videos.
    Video k of both sets is in group k mod 10: where the sets show the same captions, a group leaves with its captions.
    """
    count = len(features)
    value = frechet_distance(features, reference)
    if count < 2 * GROUPS:
        return value, None
    groups = np.arange(count) % GROUPS
    without = np.array([frechet_distance(features[groups != k], reference[groups != k]) for k in range(GROUPS)])
    half = T_QUANTILE * float(np.sqrt((GROUPS - 1) / GROUPS * np.square(without - without.mean()).sum()))
    return value, [max(0.0, value - half), value + half]


def frechet_distance(features: Floats, reference: Floats) -> float:
    """Frechet distance of two feature sets [N, D] after scaling each feature by its spread in the reference."""
    spread = reference.std(axis=0)
    scale = np.where(spread > CONSTANT, spread, 1.0)
    a, b = features / scale, reference / scale
    return frechet_of_gaussians(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))


def frechet_of_gaussians(mean_a: Floats, cov_a: Floats, mean_b: Floats, cov_b: Floats) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), float64; means [D], covariances [D, D], also singular.

    Dowson and Landau 1982. The symmetric form keeps every square root that of a positive semi-definite matrix.
    """
    root = _square_root(cov_a)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(0.0, float(distance))  # rounding may leave equal sets a hair below zero


def _square_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root
