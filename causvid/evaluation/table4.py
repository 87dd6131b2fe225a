"""The four columns of the paper's Table 4, from the judge of the toy world. Fixed before any model was scored.

The paper gives VBench's temporal quality, frame-wise quality and text alignment, and a diversity, each out of 100.
VBench's networks know nothing of flat shapes on 32 pixels, but this world has a truth that can be measured, so each
column is a mean of measures that ask what its group asks:

- temporal (flickering, consistency, smoothness): does the object move as it should, keep its size, and follow one rigid
  path? Velocity, size flicker, PSNR against the true motion.
- frame (aesthetic and imaging quality): is each frame by itself a clean picture of one object? Frames with an object,
  PSNR against the ideal picture at the measured place.
- text (object, colour, action): does the video show what the caption says?
- diversity: do videos of one caption differ as independent ones would? Starts and pixels against independent draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of 256 clips of the world, at 32 pixels and crf 10. An object that stands still has a temporal PSNR of 15.5 dB, noise
# of a fifth of full brightness a frame PSNR of 15.4, a video without its object 15.8; real clips have 30.0 and 30.1.
FLOOR_DB, CEILING_DB = 15.5, 30.0

Averages = Mapping[str, Any]


def columns(judged: Averages) -> dict[str, float | None]:
    """All four columns of the averages of ``judge.judge_videos``, in [0, 100], higher is better."""
    return {"temporal": temporal(judged), "frame": frame(judged), "text": text(judged), "diversity": diversity(judged)}


def temporal(judged: Averages) -> float:
    """100 mean(velocity, 1 - size flicker, q(temporal PSNR)); no object ever seen is the worst size flicker, 1."""
    flicker = 1.0 if judged["area_cv"] is None else min(1.0, judged["area_cv"])
    return _percent(judged["velocity"], 1 - flicker, quality_of_db(judged["temporal_psnr"]))


def frame(judged: Averages) -> float:
    """100 mean(seen, q(frame PSNR))."""
    return _percent(judged["seen"], quality_of_db(judged["frame_psnr"]))


def text(judged: Averages) -> float:
    """100 mean(colour, background, shape, motion)."""
    return _percent(*(judged[name] for name in ("colour", "background", "shape", "motion")))


def diversity(judged: Averages) -> float | None:
    """100 mean(start spread, sample spread), each at most 1: noise differs more than it should.

    None when no two videos share a caption: then it was not measured.
    """
    if judged["start_spread"] is None:
        return None
    return _percent(min(1.0, judged["start_spread"]), min(1.0, judged["sample_spread"]))


def quality_of_db(psnr: float) -> float:
    """q: ``psnr`` in dB on the line from 0 at ``FLOOR_DB`` to 1 at ``CEILING_DB``, clipped to [0, 1]."""
    return min(1.0, max(0.0, (psnr - FLOOR_DB) / (CEILING_DB - FLOOR_DB)))


def _percent(*shares: float) -> float:
    return 100 * sum(shares) / len(shares)
