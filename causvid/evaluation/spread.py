"""Measure the diversity of videos of one caption: differences between starts and between pixels of two videos.

The differences are divided by the differences of random videos of the toy world. Both measures have the expectation 1
for independent uniform starts, and are 0 if all videos are equal. The measures do not measure quality: the pixels of
two videos of noise differ too. Shapes: F frames, H and W in pixels, P pairs of videos.
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

IDEALS = 8  # number of renderings of a caption, which form 28 pairs


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Differences of all pairs of videos of one caption, divided by the expected differences.

    Attributes:
        start: Distances between the starts of the two objects, [P].
        sample: Root mean square differences of the pixels, [P].
    """

    start: Floats
    sample: Floats


def of_scene(scene: Scene, videos: Sequence[Frames], starts: Sequence[Floats | None]) -> Spread:
    """Measure the spread of videos of one scene.

    Args:
        scene: The scene.
        videos: At least two videos, each uint8 [F, H, W, 3].
        starts: For each video, the centre (x, y) of the object in the first frame; None if this frame shows no object.
            The start distance of a pair with a missing object is 0.
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
    """Return the means of both measures over all pairs; None if there are no pairs."""
    if not spreads:
        return {"start_spread": None, "sample_spread": None}
    return {
        "start_spread": float(np.concatenate([spread.start for spread in spreads]).mean()),
        "sample_spread": float(np.concatenate([spread.sample for spread in spreads]).mean()),
    }


def mean_torus_distance(width: float, height: float) -> float:
    """Return the mean shortest distance of two independent uniform points on a ``width`` x ``height`` torus.

    The distance along each axis is uniform between 0 and half of the side. The mean is therefore the integral of
    hypot(x, y) over the rectangle from 0 to half of each side, divided by the area of this rectangle.
    """
    a, b = width / 2, height / 2
    along, across = a**2 / (2 * b) * np.arcsinh(b / a), b**2 / (2 * a) * np.arcsinh(a / b)
    return float((np.hypot(a, b) + along + across) / 3)


def _ideal(scene: Scene, video: VideoShape, number: int) -> Frames:
    # The draw does not depend on the seed of the run, so that all runs are compared with the same renderings.
    draw = np.random.Generator(np.random.PCG64(derive_seed("spread", scene.caption, number)))
    start_xy = (draw.uniform(0, video.width), draw.uniform(0, video.height))
    radius = draw.uniform(*toy_world.radius_range(video))
    return toy_world.render(scene, video=video, start_xy=start_xy, radius=radius)


def _rms_distances(videos: Sequence[Frames]) -> Floats:
    """Return the root mean square difference of every pair in brightness levels of 255, [P]."""
    pairs = combinations([video.astype(np.float32) for video in videos], 2)
    return np.array([np.sqrt(np.square(one - other).mean(dtype=np.float64)) for one, other in pairs])
