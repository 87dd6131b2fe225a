"""Scores for any video that need no weights: flicker, and a Frechet distance on thirteen statistics of each video.

The statistics are simple ones of colour, texture and motion (``features`` lists them); they see no meaning. The Frechet
distance on them is no FVD: it compares runs of this project with each other, and only at equal numbers of videos,
because its floor falls as that number grows. On 128 toy-world clips against 128 others it is 0.4; after a slight blur
(sigma one pixel) 5, with a tenth of the videos without their object 6, a fifth darker 6, without motion 70.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.data.video_reader import read_frames
from causvid.runtime.progress import progress

Floats = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]

LAGS = (1, 2, 4)  # frames
SCALES = 3  # full, half and quarter size
FEATURES = 6 + SCALES + len(LAGS) + 1
CONSTANT = 1e-6  # standard deviation below which a feature says nothing


@dataclass(frozen=True, kw_only=True)
class Quality:
    """flicker: mean of the videos' flicker, in [0, 1]. features: float64 [N, 13], one row a video."""

    flicker: float
    features: Floats


def measure_folder(folder: Path, rows: Rows) -> Quality:
    """Flicker and features of the videos that the manifest ``rows`` list in ``folder``, each read once."""
    flickers, vectors = [], []
    for row in progress(rows, total=len(rows), what="measure"):
        frames = read_frames(folder / row["path"])
        flickers.append(flicker(frames))
        vectors.append(features(frames))
    return Quality(flicker=sum(flickers) / max(1, len(rows)), features=np.reshape(vectors, (len(rows), FEATURES)))


def halves(rows: Rows, limit: int) -> tuple[Rows, Rows]:
    """The first ``limit`` rows (or half of them, when they are few) and as many rows after them, never the same ones.

    The distance between the two halves of the real clips is the floor that every other distance is to be read against.
    """
    count = min(limit, len(rows) // 2)
    return rows[: max(1, count)], rows[count : 2 * count]


def flicker(frames: NDArray[np.uint8]) -> float:
    """Mean absolute difference of neighbouring frames, uint8 [F, H, W, 3], as a share of full brightness; 0 if F = 1.

    Motion counts too: compare it with the flicker of real clips, not with 0. VBench's temporal_flickering is 1 - this.
    """
    return _change(frames, 1)


def features(frames: NDArray[np.uint8]) -> Floats:
    """float64 [13] of one video, uint8 [F, H, W, 3], all as shares of full brightness.

    Mean and standard deviation of each colour; mean absolute difference of neighbouring pixels at full, half and
    quarter size; mean absolute difference of frames 1, 2 and 4 apart; the same of neighbouring differences (jerks).
    """
    # One frame at a time: a long video as floats would fill the memory.
    pictures = (frame.astype(np.float32) / 255 for frame in frames)
    rows = [np.concatenate([p.mean(axis=(0, 1)), (p**2).mean(axis=(0, 1)), _edges(p)]) for p in pictures]
    mean, square, edges = np.split(np.mean(rows, axis=0, dtype=np.float64), (3, 6))
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    changes = [_change(frames, lag) for lag in LAGS]
    return np.concatenate([mean, spread, edges, changes, [_jerk(frames)]])


def _edges(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean absolute difference of neighbours to the right and below, [SCALES]."""
    found = []
    for _ in range(SCALES):
        found.append(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())
        height, width = (picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2)
        picture = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    return np.array(found)


def _change(frames: NDArray[np.uint8], lag: int) -> float:
    """Mean absolute difference of frames ``lag`` apart (or as far apart as there are frames)."""
    lag = min(lag, len(frames) - 1)
    if lag == 0:
        return 0.0
    pairs = zip(frames[lag:], frames[:-lag], strict=True)
    return float(np.mean([np.abs(after.astype(np.int16) - before).mean() for after, before in pairs])) / 255


def _jerk(frames: NDArray[np.uint8]) -> float:
    if len(frames) < 3:
        return 0.0
    triples = zip(frames[2:], frames[1:-1], frames[:-2], strict=True)
    return float(np.mean([np.abs(c.astype(np.int16) - 2 * b.astype(np.int16) + a).mean() for c, b, a in triples])) / 255


def frechet_distance(features: Floats, reference: Floats) -> float | None:
    """Frechet distance of two feature sets [N, D] after scaling each feature by its spread in the reference.

    The larger set is cut to the size of the smaller one. None when fewer than two videos are left: they have no spread.
    """
    count = min(len(features), len(reference))
    if count < 2:
        return None
    spread = reference[:count].std(axis=0)
    scale = np.where(spread > CONSTANT, spread, 1.0)
    a, b = features[:count] / scale, reference[:count] / scale
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
