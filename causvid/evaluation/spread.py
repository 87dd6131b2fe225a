"""Do videos of one caption differ as they should? Their starts and pixels against independent draws of the toy world.

Shapes: F frames, H and W in pixels. Both measures are 1 for independent uniform starts and 0 for one video again and
again. They say nothing of quality: two videos of noise differ too, but an object that is not there has no start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.data.sources.toy_world import Scene
from causvid.runtime.seeding import derive_seed
from causvid.runtime.shapes import VideoShape

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]

IDEALS = 8  # renderings of a caption: 28 pairs


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of the pairs of videos of one caption: start [P] and sample [P], each as a share of its expectation."""

    start: Floats
    sample: Floats


def of_scene(scene: Scene, videos: Sequence[Frames], starts: Sequence[Floats | None]) -> Spread:
    """The spread of two or more ``videos`` [F, H, W, 3] of ``scene``; starts (x, y) of their objects, None for none.

    A pair in which an object is missing has start 0: no place was chosen.
    """
    frames, height, width, _ = videos[0].shape
    video = VideoShape(height=height, width=width, frames=frames, fps=1)
    size = np.array([width, height])
    distances = [
        0.0 if one is None or other is None else np.linalg.norm((one - other + size / 2) % size - size / 2)
        for one, other in combinations(starts, 2)
    ]
    ideal = _rms_distances([_ideal(scene, video, number) for number in range(IDEALS)]).mean()
    return Spread(start=np.array(distances) / mean_torus_distance(width, height), sample=_rms_distances(videos) / ideal)


def average(spreads: Sequence[Spread]) -> dict[str, float | None]:
    """Means over all pairs; None when there are none."""
    if not spreads:
        return {"start_spread": None, "sample_spread": None}
    return {
        "start_spread": float(np.concatenate([spread.start for spread in spreads]).mean()),
        "sample_spread": float(np.concatenate([spread.sample for spread in spreads]).mean()),
    }


def mean_torus_distance(width: float, height: float) -> float:
    """Mean distance, the short way round, of two independent uniform points of a ``width`` x ``height`` torus.

    Each coordinate's distance is uniform up to half the side, so it is the mean distance of a rectangle's points from
    its corner, the integral of hypot(x, y).
    """
    a, b = width / 2, height / 2
    along, across = a**2 / (2 * b) * np.arcsinh(b / a), b**2 / (2 * a) * np.arcsinh(a / b)
    return float((np.hypot(a, b) + along + across) / 3)


def _ideal(scene: Scene, video: VideoShape, number: int) -> Frames:
    # No seed of the run: every run is held against the same renderings.
    draw = np.random.Generator(np.random.PCG64(derive_seed("spread", scene.caption, number)))
    start_xy = (draw.uniform(0, video.width), draw.uniform(0, video.height))
    radius = draw.uniform(*toy_world.radius_range(video))
    return toy_world.render(scene, video=video, start_xy=start_xy, radius=radius)


def _rms_distances(videos: Sequence[Frames]) -> Floats:
    """Root of the mean squared difference of every pair, in brightness levels, [P]."""
    pairs = combinations([video.astype(np.float32) for video in videos], 2)
    return np.array([np.sqrt(np.square(one - other).mean(dtype=np.float64)) for one, other in pairs])
