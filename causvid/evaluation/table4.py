"""The four columns of the paper's Table 4, computed from the scores of the toy world's judge.

The columns of the paper are VBench's temporal quality, frame-wise quality and text alignment, and a diversity, each out
of 100. VBench's networks were not trained on flat shapes of 32 pixels, but the true video of a caption of the toy world
is known. Each column here is a mean of scores that measure the same aspect. The formulas were fixed before any model
was scored.

- temporal (VBench: flickering, consistency, smoothness): velocity, constant size, PSNR with respect to the true motion.
- frame (VBench: aesthetic and imaging quality): frames that show an object, PSNR with respect to the ideal frame.
- text (VBench: object, colour, action): colour, background, shape and motion of the caption.
- diversity: spread of the starts and pixels of videos of one caption, relative to independent videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Measured with 256 clips of 32 pixels at crf 10. Real clips: temporal PSNR 30.0 dB, frame PSNR 30.1 dB. Static object:
# temporal PSNR 15.5 dB. Noise of a fifth of full brightness: frame PSNR 15.4 dB. No object: frame PSNR 15.8 dB.
FLOOR_DB, CEILING_DB = 15.5, 30.0

Averages = Mapping[str, Any]


def columns(judged: Averages) -> dict[str, float | None]:
    """Return all four columns for the averages of ``judge.judge_videos``, in [0, 100]; higher is better."""
    return {"temporal": temporal(judged), "frame": frame(judged), "text": text(judged), "diversity": diversity(judged)}


def temporal(judged: Averages) -> float:
    """Return 100 mean(velocity, 1 - size flicker, q(temporal PSNR)).

    The size flicker is at most 1, and 1 if no video shows an object.
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
    """Return 100 mean(start spread, sample spread), or None if no two videos share a caption.

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
