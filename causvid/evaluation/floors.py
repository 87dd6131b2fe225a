"""Score corrupted real clips, whose scores are the floors of the measures. Uncorrupted clips give the ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.evaluation import judge, table4
from causvid.evaluation.corruptions import FLOORS
from causvid.evaluation.frechet import Ruler
from causvid.runtime.seeding import derive_seed


def floors(
    videos: Sequence[NDArray[np.uint8]], captions: Sequence[str], blocks: Sequence[range], ruler: Ruler
) -> dict[str, dict[str, Any]]:
    """Score clips of the toy world after every corruption.

    Args:
        videos: Real clips, each uint8 [F, H, W, 3].
        captions: The captions of the clips.
        blocks: Frames of each block of a clip.
        ruler: Measures the Frechet distance.

    Returns:
        {corruption: {"judge", "table4", "frechet_distance"}}. For "shuffled_captions", the judge compares every clip
        with a random caption of the set, so that the scores are those of chance. The "frechet_distance" of this entry
        is None, because captions do not influence the Frechet distance.
    """
    shuffled = _generator("shuffled_captions").permutation(len(captions))
    scores: dict[str, dict[str, Any]] = {
        "shuffled_captions": {**_judged(videos, [captions[k] for k in shuffled], blocks), "frechet_distance": None}
    }
    for name, (corrupt, strength) in FLOORS.items():
        damaged = [corrupt(frames, strength, _generator(name, k)) for k, frames in enumerate(videos)]
        distance = ruler.measure(damaged)["frechet_distance"]
        scores[name] = {**_judged(damaged, captions, blocks), "frechet_distance": distance}
    return scores


def _judged(
    videos: Sequence[NDArray[np.uint8]], captions: Sequence[str], blocks: Sequence[range]
) -> dict[str, dict[str, Any]]:
    judged = judge.judge_videos(videos, captions, blocks)
    assert judged is not None, "the captions are the toy world's"
    return {"judge": judged, "table4": table4.columns(judged)}


def _generator(*keys: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed("floors", *keys)))
