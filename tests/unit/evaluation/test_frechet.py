from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from causvid.evaluation import quality
from causvid.evaluation.frechet import Ruler


def net(videos: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    return np.array([[video.mean(), video.std()] for video in videos], dtype=np.float64)


def noise(count: int, seed: int) -> list[NDArray[np.uint8]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, draw.integers(100, 256), (2, 4, 4, 3), dtype=np.uint8) for _ in range(count)]


def ruler(reference: int, count: int) -> Ruler:
    return Ruler(net=net, reference=net(noise(reference, seed=1)), count=count)


def test_exactly_the_given_number_of_videos_is_measured() -> None:
    videos = noise(30, seed=0)
    found = ruler(40, 25).measure(videos)
    value, interval = quality.distance(net(videos[:25]), net(noise(25, seed=1)))
    expected = {"frechet_distance": value, "frechet_interval": interval, "frechet_n": 25, "frechet_note": None}
    assert found == expected | {"frechet_distance": pytest.approx(value)}
    assert interval is not None


@pytest.mark.parametrize(
    ("videos", "reference", "count", "found"), [(24, 40, 25, 24), (40, 24, 25, 24), (1, 1, 1, 1), (3, 0, 4, 0)]
)
def test_too_few_videos_have_a_note_instead_of_a_distance(videos: int, reference: int, count: int, found: int) -> None:
    measured = ruler(reference, count).measure(noise(videos, seed=0))
    assert measured["frechet_distance"] is measured["frechet_interval"] is None
    assert measured["frechet_n"] == found
    assert f"{found} of {count} videos" in measured["frechet_note"]
