"""Measure the Frechet distance between a set of videos and a reference set, with a fixed number of videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.evaluation import quality

Frames = NDArray[np.uint8]
Net = Callable[[Iterable[Frames]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """Measures Frechet distances from one reference set.

    Attributes:
        net: Function that maps videos to features [N, D], a ``causvid.evaluation.features.FeatureNet``.
        reference: Features [N, D] of the reference set.
        count: Number of videos in each set. Only distances with equal numbers of videos are comparable.
    """

    net: Net
    reference: NDArray[np.float64]
    count: int

    def measure(self, videos: Sequence[Frames]) -> dict[str, Any]:
        """Measure the distance of the first ``count`` videos.

        Returns:
            A dictionary. ``frechet_distance`` is the distance. ``frechet_interval`` is the 95 % interval [low, high] of
            the distance; it is None if a group of the jackknife has fewer than two videos. ``frechet_n`` is the number
            of videos. If ``videos`` or the reference set has fewer than ``count`` videos, the distance is None, and
            ``frechet_note`` gives the reason.
        """
        available = min(len(videos), len(self.reference), self.count)
        if available < max(2, self.count):
            note = f"{available} of {self.count} videos: distances of different numbers of videos are not comparable"
            return {"frechet_distance": None, "frechet_interval": None, "frechet_n": available, "frechet_note": note}
        features = self.net(videos[:available])
        value, interval = quality.distance(features, self.reference[:available])
        return {"frechet_distance": value, "frechet_interval": interval, "frechet_n": available, "frechet_note": None}
