from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.evaluation import quality


def rotation(size: int, seed: int) -> NDArray[np.float64]:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@settings(max_examples=50, deadline=None)
@given(
    variances=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=6),
    shift=st.floats(-20, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_frechet_of_gaussians_with_common_axes_has_a_closed_form(
    variances: list[tuple[float, float]], shift: float, seed: int
) -> None:
    a, b = np.array(variances).T
    turn = rotation(len(a), seed)
    mean_a, mean_b = np.zeros(len(a)), turn @ np.full(len(a), shift)
    found = quality.frechet_of_gaussians(mean_a, turn @ np.diag(a) @ turn.T, mean_b, turn @ np.diag(b) @ turn.T)
    assert found == pytest.approx(len(a) * shift**2 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-6, abs=1e-4)


def test_frechet_of_two_by_two_gaussians_that_do_not_commute() -> None:
    # The trace of the square root of a 2 x 2 matrix is sqrt(trace + 2 sqrt(determinant)).
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    product = a @ b
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 4 + 9 + np.trace(a) + np.trace(b) - 2 * root_trace
    found = quality.frechet_of_gaussians(np.zeros(2), a, np.array([2.0, 3.0]), b)
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_works_with_fewer_videos_than_features() -> None:
    a = np.random.default_rng(0).normal(size=(3, 10))
    assert quality.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    shifted = quality.frechet_distance(a + 1, a)
    assert shifted == pytest.approx(((1 / a.std(axis=0)) ** 2).sum())


def test_a_constant_feature_has_a_small_distance() -> None:
    a = np.random.default_rng(0).normal(size=(20, 4))
    b = a.copy()
    a[:, 0], b[:, 0] = 1.001, 1.0
    assert quality.frechet_distance(a, b) == pytest.approx(1e-6)


def test_the_interval_has_the_width_of_the_sampling_variation() -> None:
    # With one feature, the distance is close to (shift / standard deviation of the reference)^2. Both means and this
    # standard deviation have sampling errors. The variance of the distance is (2 shift)^2 2 / n + (2 shift^2)^2 / (2 n).
    draw, count, shift = np.random.default_rng(0), 400, 3.0
    found = []
    for _ in range(60):
        features, reference = (np.stack([draw.normal(m, size=count), np.zeros(count)], axis=1) for m in (shift, 0.0))
        found.append(quality.distance(features, reference))
    halves = [(interval[1] - interval[0]) / 2 for _, interval in found if interval]
    assert len(halves) == 60
    deviation = np.sqrt((8 * shift**2 + 2 * shift**4) / count)
    assert np.std([value for value, _ in found]) == pytest.approx(deviation, rel=0.2)
    assert np.sqrt(np.mean(np.square(halves))) == pytest.approx(2.262 * deviation, rel=0.15)
    assert np.mean([interval[0] <= shift**2 <= interval[1] for _, interval in found if interval]) >= 0.85


def test_the_interval_contains_the_distance_and_is_not_negative() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40, 3))
    value, interval = quality.distance(a, b)
    assert interval is not None
    assert 0 <= interval[0] < value < interval[1]
    assert quality.distance(a, b) == (value, interval)
    assert quality.distance(a, a)[1] == pytest.approx([0, 0], abs=1e-6)


def test_few_videos_have_a_distance_without_an_interval() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 20, 3))
    assert quality.distance(a, b)[1] is not None
    assert quality.distance(a[:19], b[:19]) == (quality.frechet_distance(a[:19], b[:19]), None)


def test_flicker_is_the_mean_change_between_frames() -> None:
    frames = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    frames[1] = 255  # the frames change by 1 and back
    assert quality.flicker(frames) == 1.0
    frames[2] = 255
    assert quality.flicker(frames) == 0.5
    assert quality.flicker(frames[:1]) == 0.0
    frames[1] = 0
    assert quality.mean_flicker([frames, frames[:2]]) == 0.25


@given(count=st.integers(1, 40), limit=st.integers(1, 30))
def test_halves_are_disjoint_and_equal(count: int, limit: int) -> None:
    rows = [{"id": k} for k in range(count)]
    shown, reserved = quality.halves(rows, limit)
    ids = [row["id"] for row in (*shown, *reserved)]
    assert len(set(ids)) == len(ids)
    assert len(shown) >= 1
    assert len(shown) == len(reserved) or count == 1
    assert len(shown) == min(limit, max(1, count // 2))
