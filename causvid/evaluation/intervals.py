"""Estimate confidence intervals of scores with the bootstrap over videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from causvid.runtime.seeding import derive_seed

DRAWS = 1000
LEVEL = 95.0  # percent

Chosen = NDArray[np.intp]
Scores = Mapping[str, float | None]


def bootstrap(count: int, scores_of: Callable[[Chosen], Scores]) -> dict[str, list[float] | None]:
    """Return the 95 % percentile interval of every score (Efron and Tibshirani 1993, section 13.3).

    The interval estimates the variation between sets of ``count`` videos of the same model. It does not include the
    variation between trainings. The draws are the same in every call with the same ``count``.

    Args:
        count: Number of videos.
        scores_of: Returns the scores of the videos with the given indices [``count``], which may contain an index
            several times. A score of None counts as not measured.

    Returns:
        A mapping from the names of the scores to [low, high]. The interval is None for fewer than two videos, or if a
        draw has no score.
    """
    draw = np.random.Generator(np.random.PCG64(derive_seed("bootstrap", count)))
    drawn = [scores_of(draw.integers(count, size=count)) for _ in range(DRAWS)] if count else []
    intervals: dict[str, list[float] | None] = {}
    for name in drawn[0] if drawn else ():
        values = [scores[name] for scores in drawn]
        known = [value for value in values if value is not None]
        tails = (100 - LEVEL) / 2, (100 + LEVEL) / 2
        is_known = count > 1 and len(known) == DRAWS
        intervals[name] = [float(edge) for edge in np.percentile(known, tails)] if is_known else None
    return intervals
