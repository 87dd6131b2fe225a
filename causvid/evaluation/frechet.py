"""The Frechet distance of a set of videos to a reference set, read at one fixed number of videos."""

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
    """Measures ``count`` videos, the one number that distances are compared at.

    net: from videos to features [N, D], a causvid.evaluation.features.FeatureNet; reference: features to compare with.
    """

    net: Net
    reference: NDArray[np.float64]
    count: int

    def measure(self, videos: Sequence[Frames]) -> dict[str, Any]:
        """``frechet_distance``, its ``frechet_interval`` [low, high] (95 %), ``frechet_n`` videos, ``frechet_note``.

        With fewer videos than ``count``, here or in the reference, the distance is None and the note says so. The
        interval is None below two videos for each group of the jackknife.
        """
        found = min(len(videos), len(self.reference), self.count)
        if found < max(2, self.count):
            note = f"{found} of {self.count} videos: at another number the distance is another"
            return {"frechet_distance": None, "frechet_interval": None, "frechet_n": found, "frechet_note": note}
        features = self.net(videos[:found])
        value, interval = quality.distance(features, self.reference[:found])
        return {"frechet_distance": value, "frechet_interval": interval, "frechet_n": found, "frechet_note": None}
