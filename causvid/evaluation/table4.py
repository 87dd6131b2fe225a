"""Compute the four columns of the paper's Table 4 from the scores of the toy world's judge.

The columns of the paper are VBench's temporal quality, frame-wise quality and text alignment, and a diversity, each
from 0 to 100. VBench's networks were not trained on videos of flat shapes with 32 x 32 pixels. For the toy world, the
correct video of a caption is known, so that the judge can score the same aspects. Each column is a mean of the judge's
scores. The formulas were fixed before any model was scored.

- temporal is the mean of velocity, constant size, and PSNR with respect to the true motion. VBench scores flickering,
  consistency and smoothness.
- frame is the mean of the share of frames that show an object, and the PSNR with respect to the ideal frame. VBench
  scores aesthetic and imaging quality.
- text is the mean of the scores for colour, background, shape and motion. VBench scores object, colour and action.
- diversity is the mean spread of the starts and pixels of videos of one caption, relative to independent videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.evaluation.intervals import bootstrap
from causvid.evaluation.judge import Verdict

# PSNR in dB that gives the quality 0 and 1. These values were measured with 256 clips of 32 x 32 pixels and crf 10.
# Real clips have a temporal PSNR of 30.0 dB and a frame PSNR of 30.1 dB. Clips with a static object have a temporal
# PSNR of 15.5 dB. The frame PSNR is 15.4 dB for clips with noise (standard deviation 0.2 of full brightness), and
# 15.8 dB for clips without an object.
FLOOR_DB, CEILING_DB = 15.5, 30.0

Averages = Mapping[str, Any]


def columns(judged: Averages) -> dict[str, float | None]:
    """Return all four columns for the averages of ``judge.judge_videos``, in [0, 100]; higher is better."""
    return {"temporal": temporal(judged), "frame": frame(judged), "text": text(judged), "diversity": diversity(judged)}


def intervals(verdicts: Sequence[Verdict]) -> dict[str, list[float] | None]:
    """Return the 95 % intervals of ``bootstrap`` for the mean of every field of ``verdicts``, and for three columns.

    The diversity has no interval, because it is a mean over pairs of videos.
    """
    names = [field.name for field in fields(Verdict)]
    values = np.array([[getattr(verdict, name) for name in names] for verdict in verdicts], dtype=np.float64)

    def scores_of(chosen: NDArray[np.intp]) -> dict[str, float | None]:
        drawn = values[chosen]
        known = (~np.isnan(drawn)).sum(axis=0)  # a field that is None counts as missing, as in judge.average
        sums = np.nansum(drawn, axis=0)
        means = {name: float(sums[k] / known[k]) if known[k] else None for k, name in enumerate(names)}
        return {**means, "temporal": temporal(means), "frame": frame(means), "text": text(means)}

    return bootstrap(len(verdicts), scores_of)


def temporal(judged: Averages) -> float:
    """Return 100 mean(velocity, 1 - size flicker, q(temporal PSNR)).

    A size flicker above 1 is set to 1. If no video shows an object, the size flicker is 1.
    """
    flicker = 1.0 if judged["area_cv"] is None else min(1.0, judged["area_cv"])
    return _percent(judged["velocity"], 1 - flicker, quality_of_db(judged["temporal_psnr"]))


def frame(judged: Averages) -> float:
    """Return 100 mean(seen, q(frame PSNR))."""
    return _percent(judged["seen"], quality_of_db(judged["frame_psnr"]))


def text(judged: Averages) -> float:
    """Return 100 mean(colour, background, shape, motion)."""
    return _percent(*(judged[name] for name in ("colour", "background", "shape", "motion")))


def diversity(judged: Averages) -> float | None:
    """Return 100 mean(start spread, sample spread), or None if no two videos have the same caption.

    Each spread is clipped to 1, because videos of noise differ more than correct videos.
    """
    if judged["start_spread"] is None:
        return None
    return _percent(min(1.0, judged["start_spread"]), min(1.0, judged["sample_spread"]))


def quality_of_db(psnr: float) -> float:
    """Return q(``psnr``): linear from 0 at ``FLOOR_DB`` to 1 at ``CEILING_DB``, clipped to [0, 1]."""
    return min(1.0, max(0.0, (psnr - FLOOR_DB) / (CEILING_DB - FLOOR_DB)))


def _percent(*shares: float) -> float:
    return 100 * sum(shares) / len(shares)
