from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.evaluation import judge, spread
from causvid.evaluation.spread import mean_torus_distance
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=5, fps=8)
SCENE = toy_world.parse("a red square moves left over a gray background")
Frames = NDArray[np.uint8]


def draws(count: int, width: float = 32) -> tuple[list[Frames], list[NDArray[np.float64] | None]]:
    draw = np.random.default_rng(0)
    starts = [np.array([draw.uniform(0, width), draw.uniform(0, 32)]) for _ in range(count)]
    videos = [
        toy_world.render(SCENE, video=VIDEO, start_xy=(start[0], start[1]), radius=draw.uniform(5.5, 6.5))
        for start in starts
    ]
    return videos, list(starts)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 32), (32, 64), (100, 2)])
def test_mean_distance_on_the_torus_is_the_integral(width: int, height: int) -> None:
    steps = (np.arange(1000) + 0.5) / 1000
    distances = np.hypot(steps * width / 2, steps[:, None] * height / 2)
    assert mean_torus_distance(width, height) == pytest.approx(distances.mean(), rel=1e-5)


def test_independent_videos_have_a_spread_of_1() -> None:
    found = spread.average([spread.of_scene(SCENE, *draws(60))])
    assert found["start_spread"] == pytest.approx(1, abs=0.05)
    assert found["sample_spread"] == pytest.approx(1, abs=0.08)


def test_starts_in_a_smaller_region_have_less_spread() -> None:
    free, narrow = (spread.average([spread.of_scene(SCENE, *draws(30, width))]) for width in (32, 6))
    for name in ("start_spread", "sample_spread"):
        assert (narrow[name] or 0) < 0.9 * (free[name] or 0), name


def test_copies_of_one_video_have_a_spread_of_0() -> None:
    videos, starts = draws(1)
    assert spread.average([spread.of_scene(SCENE, videos * 3, starts * 3)]) == {"start_spread": 0, "sample_spread": 0}


def test_a_missing_start_has_start_distance_zero() -> None:
    videos, starts = draws(3)
    found = spread.of_scene(SCENE, videos, [*starts[:2], None])
    assert found.start[0] > 0
    assert found.start[1:].tolist() == [0, 0]
    assert (found.sample > 0).all()


def test_distances_are_the_shortest_on_the_torus() -> None:
    videos, _ = draws(2)
    found = spread.of_scene(SCENE, videos, [np.array([31.0, 16.0]), np.array([2.0, 16.0])])
    assert found.start == pytest.approx([3 / mean_torus_distance(32, 32)])


def test_sample_spread_is_proportional_to_the_root_mean_square_difference() -> None:
    frames = np.zeros((5, 32, 32, 3), dtype=np.uint8)
    ideal = spread.of_scene(SCENE, [frames, frames + 10], [None, None]).sample
    assert spread.of_scene(SCENE, [frames, frames + 30], [None, None]).sample == pytest.approx(3 * ideal)


def test_the_judge_measures_the_true_starts() -> None:
    videos, starts = draws(4)
    for frames, start in zip(videos, starts, strict=True):
        assert judge.examine(frames, SCENE).start == pytest.approx(start, abs=0.2)


def test_without_pairs_the_spread_is_none() -> None:
    assert spread.average([]) == {"start_spread": None, "sample_spread": None}
