"""Tests of the bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from causvid.evaluation import judge, table4
from causvid.evaluation.intervals import bootstrap
from causvid.evaluation.judge import Verdict

RANDOM = np.random.Generator(np.random.PCG64(3))


def mean_of(values: NDArray[np.float64], count: int) -> list[float] | None:
    return bootstrap(count, lambda chosen: {"mean": float(values[chosen].mean())})["mean"]


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = RANDOM.normal(5.0, 2.0, size=400)
    interval = mean_of(values, 400)
    assert interval is not None
    error = values.std() / np.sqrt(400)
    assert interval[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert interval[1] == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_about_95_percent_of_the_intervals_contain_the_true_mean() -> None:
    inside = [low <= 0 <= high for low, high in (mean_of(RANDOM.normal(size=60), 60) or (0, 0) for _ in range(200))]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_equal_videos_give_equal_intervals_and_no_width() -> None:
    values = np.full(10, 0.5)
    assert mean_of(values, 10) == [0.5, 0.5] == mean_of(values, 10)


@pytest.mark.parametrize(("count", "expected"), [(0, {}), (1, {"mean": None})])
def test_fewer_than_two_videos_have_no_interval(count: int, expected: dict[str, None]) -> None:
    assert bootstrap(count, lambda chosen: {"mean": 1.0}) == expected


def verdict(velocity: float, area_cv: float | None) -> Verdict:
    return Verdict(
        colour=True, background=True, shape=velocity > 0.5, motion=True, velocity=velocity, seen=1.0, area_cv=area_cv,
        frame_psnr=20.0 + velocity, temporal_psnr=20.0,
    )  # fmt: skip


def test_the_intervals_of_the_scores_contain_the_scores() -> None:
    verdicts = [verdict(k / 19, None if k == 0 else 0.1) for k in range(20)]
    means = judge.average(verdicts)
    assert means is not None
    found, expected = table4.intervals(verdicts), {**means, "temporal": table4.temporal(means)}
    for name in ("velocity", "shape", "frame_psnr", "temporal", "colour", "area_cv"):
        low, high = found[name] or (1.0, 0.0)
        assert low - 1e-9 <= expected[name] <= high + 1e-9, name
    assert found["colour"] == [1.0, 1.0]
    assert "diversity" not in found


def test_videos_without_an_object_have_no_interval_of_the_size_flicker() -> None:
    found = table4.intervals([verdict(0.0, None)] * 3)
    assert found["area_cv"] is None
    assert found["velocity"] == [0.0, 0.0]
