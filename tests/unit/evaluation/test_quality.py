from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data import toy_world
from causvid.data.video_writer import write_video
from causvid.evaluation import quality
from causvid.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)


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
    # For 2x2 the trace of the root is known: sqrt(trace + 2 sqrt(determinant)) of the product.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    product = a @ b
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 4 + 9 + np.trace(a) + np.trace(b) - 2 * root_trace
    found = quality.frechet_of_gaussians(np.zeros(2), a, np.array([2.0, 3.0]), b)
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_works_with_fewer_videos_than_features() -> None:
    a = np.random.default_rng(0).normal(size=(3, quality.FEATURES))
    assert quality.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    shifted = quality.frechet_distance(a + 1, a)
    assert shifted == pytest.approx(((1 / a.std(axis=0)) ** 2).sum())


def test_frechet_distance_compares_equal_numbers_only() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 20, 4))
    assert quality.frechet_distance(a, b[:7]) == quality.frechet_distance(a[:7], b[:7])
    assert quality.frechet_distance(a[:1], b) is None
    assert quality.frechet_distance(a, b[:0]) is None


def test_a_feature_that_never_varies_does_not_explode() -> None:
    a = np.random.default_rng(0).normal(size=(20, 4))
    b = a.copy()
    a[:, 0], b[:, 0] = 1.001, 1.0
    assert quality.frechet_distance(a, b) == pytest.approx(1e-6)


def clips(first: int, count: int) -> list[NDArray[np.uint8]]:
    captions = toy_world.clip_captions(first + count, seed=0)
    return [toy_world.clip_frames(captions[k], k, video=VIDEO, seed=0) for k in range(first, first + count)]


def test_frechet_distance_tells_damaged_videos_from_real_ones() -> None:
    def distance(videos: list[NDArray[np.uint8]]) -> float:
        found = quality.frechet_distance(np.stack([quality.features(video) for video in videos]), reference)
        assert found is not None
        return found

    shown = clips(0, 64)
    reference = np.stack([quality.features(video) for video in clips(64, 64)])
    floor = distance(shown)
    order = np.random.default_rng(0).permutation(VIDEO.frames)
    assert floor < 2
    assert distance([(video * 0.8).astype(np.uint8) for video in shown]) > 4 * floor
    assert distance([video[order] for video in shown]) > 4 * floor
    assert distance([np.repeat(video[:1], VIDEO.frames, axis=0) for video in shown]) > 4 * floor
    emptied = [np.broadcast_to(v[:, :1, :1], v.shape).copy() if k % 10 == 0 else v for k, v in enumerate(shown)]
    assert distance(emptied) > 4 * floor


def test_features_of_stripes_in_closed_form() -> None:
    frames = np.zeros((4, 8, 16, 3), dtype=np.uint8)
    frames[:, :, ::2] = 255  # columns, one pixel wide
    frames[1::2] = 255 - frames[1::2]  # which change places in every frame
    edges = [1, 0, 0]  # two pixels side by side are gray together
    changes, jerk = [1, 0, 1], 2  # over four frames: as far as there are frames, three
    assert quality.features(frames) == pytest.approx([0.5] * 6 + edges + changes + [jerk], abs=1e-6)


def test_features_keep_the_colours_apart() -> None:
    frames = np.full((5, 8, 8, 3), (51, 102, 204), dtype=np.uint8)
    assert quality.features(frames) == pytest.approx([0.2, 0.4, 0.8] + [0] * 10, abs=1e-3)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 480, 832), (5, 100, 30)])
def test_features_of_any_size(size: tuple[int, int, int]) -> None:
    found = quality.features(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    assert found.shape == (quality.FEATURES,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def test_flicker_is_the_mean_step() -> None:
    frames = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    frames[1] = 255  # there and back again
    assert quality.flicker(frames) == 1.0
    frames[2] = 255
    assert quality.flicker(frames) == 0.5
    assert quality.flicker(frames[:1]) == 0.0


@given(count=st.integers(1, 40), limit=st.integers(1, 30))
def test_halves_are_disjoint_and_equal(count: int, limit: int) -> None:
    rows = [{"id": k} for k in range(count)]
    shown, reserved = quality.halves(rows, limit)
    ids = [row["id"] for row in (*shown, *reserved)]
    assert len(set(ids)) == len(ids)
    assert len(shown) >= 1
    assert len(shown) == len(reserved) or count == 1
    assert len(shown) == min(limit, max(1, count // 2))


def test_folder_is_measured_by_its_rows(tmp_path: Path) -> None:
    for k, frames in enumerate(clips(0, 3)):
        write_video(tmp_path / f"{k}.mp4", frames, fps=8, crf=10)
    rows = [{"path": f"{k}.mp4"} for k in (2, 0)]
    measured = quality.measure_folder(tmp_path, rows)
    assert measured.features.shape == (2, quality.FEATURES)
    assert 0 < measured.flicker < 0.2
    one = quality.measure_folder(tmp_path, rows[:1])
    assert np.array_equal(one.features[0], measured.features[0])
    assert quality.frechet_distance(measured.features, quality.measure_folder(tmp_path, []).features) is None
