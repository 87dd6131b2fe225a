"""Compute flicker, and the Frechet distance between two sets of features with a confidence interval.

The distance is not an FVD; only distances of runs of this project are comparable. The distance has a bias that
decreases with the number of videos, so that only distances with the same number of videos are comparable. For example,
with the VAE of the toy world, the distance between real clips and renderings of the same captions is 0.8 with 64
videos, 0.4 with 128 videos and 0.2 with 256 videos. The interval estimates the variation between samples of videos; it
does not include the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]

CONSTANT = 1e-6  # a feature with a smaller standard deviation counts as constant
GROUPS = 10  # number of groups of the jackknife
T_QUANTILE = 2.262  # 97.5 % quantile of Student's t distribution with GROUPS - 1 degrees of freedom


def halves(rows: Rows, limit: int) -> tuple[Rows, Rows]:
    """Return two disjoint sets of rows of equal size, each with at most ``limit`` rows.

    If there is only one row, the first set contains this row, and the second set is empty. The distance between two
    sets of real clips is the smallest distance that a model can be expected to reach.
    """
    count = min(limit, len(rows) // 2)
    return rows[: max(1, count)], rows[count : 2 * count]


def mean_flicker(videos: Iterable[NDArray[np.uint8]]) -> float:
    """Return the mean flicker of several videos."""
    return float(np.mean([flicker(frames) for frames in videos]))


def flicker(frames: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of consecutive frames, uint8 [F, H, W, 3], as a share of full brightness.

    The flicker of a single frame is 0. Motion increases the flicker: compare the flicker of a model with the flicker of
    real clips, not with 0. VBench's temporal_flickering is 1 - flicker.
    """
    if len(frames) == 1:
        return 0.0
    # Pairs are processed one after another, because a long video in int16 would fill the memory.
    pairs = zip(frames[1:], frames[:-1], strict=True)
    return float(np.mean([np.abs(after.astype(np.int16) - before).mean() for after, before in pairs])) / 255


def distance(features: Floats, reference: Floats) -> tuple[float, list[float] | None]:
    """Return the Frechet distance of two feature sets [N, D] with equal N, and the 95 % interval [low, high].

    The interval is computed with the delete-a-group jackknife (Kott 2001). The interval is None if a group would have
    fewer than two videos. Video k of each set belongs to group k mod 10. If both sets have the same captions, videos of
    the same caption are therefore deleted together.
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
    """Return the Frechet distance of two feature sets [N, D], in units of the reference's standard deviations."""
    spread = reference.std(axis=0)
    scale = np.where(spread > CONSTANT, spread, 1.0)
    a, b = features / scale, reference / scale
    return frechet_of_gaussians(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))


def frechet_of_gaussians(mean_a: Floats, cov_a: Floats, mean_b: Floats, cov_b: Floats) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) in float64 (Dowson and Landau 1982).

    In this symmetric form, square roots are computed of positive semi-definite matrices only.

    Args:
        mean_a: First mean [D].
        cov_a: First covariance A [D, D], which may be singular.
        mean_b: Second mean [D].
        cov_b: Second covariance B [D, D], which may be singular.
    """
    root = _square_root(cov_a)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(0.0, float(distance))  # rounding errors may give a small negative number for equal sets


def _square_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root
