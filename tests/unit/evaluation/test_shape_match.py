from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.evaluation import shape_match
from causvid.evaluation.shape_match import MIN_MATCH, match_shapes, mean_picture


def masks(shape: str, centers: NDArray[np.float64], radius: float, size: int = 32) -> NDArray[np.float64]:
    return toy_world.shape_mask(shape, size, size, centers, radius)


def along(x: float, y: float, frames: int = 9) -> NDArray[np.float64]:
    return np.array([x, y]) + np.arange(frames)[:, None] * np.array([1.0, 0.0])


@given(
    shape=st.sampled_from(toy_world.SHAPES),
    x=st.floats(0, 32),
    y=st.floats(0, 32),
    radius=st.floats(4.5, 8.5),
)
def test_shape_and_radius_are_recognised_anywhere_on_the_torus(shape: str, x: float, y: float, radius: float) -> None:
    found = match_shapes(mean_picture(masks(shape, along(x, y), radius), along(x, y), 1.0))
    assert max(found, key=lambda name: found[name].match) == shape
    assert found[shape].match > 0.97
    assert found[shape].radius == pytest.approx(radius, rel=0.04)


@pytest.mark.parametrize("shape", toy_world.SHAPES)
@pytest.mark.parametrize("scale", [2, 3])
def test_a_larger_video_gives_the_same_mean_image(shape: str, scale: int) -> None:
    at = along(9.4, 20.7)
    small = mean_picture(masks(shape, at, 6.0), at, 1.0)
    large = mean_picture(masks(shape, at * scale, 6.0 * scale, 32 * scale), at * scale, float(scale))
    assert large == pytest.approx(small, abs=0.25)  # the large video has sharper edges
    assert large.sum() == pytest.approx(small.sum(), rel=0.02)
    assert match_shapes(large)[shape].match > 0.97


@pytest.mark.parametrize("shape", toy_world.SHAPES)
def test_a_blurred_shape_is_still_recognised(shape: str) -> None:
    picture = shape_match._gaussian(1.0) @ mean_picture(masks(shape, along(5, 5), 6.0), along(5, 5), 1.0)
    found = match_shapes(picture @ shape_match._gaussian(1.0).T)
    others = [found[name].match for name in toy_world.SHAPES if name != shape]
    assert found[shape].match > 0.98 > max(others)


def test_other_images_match_no_shape() -> None:
    size = 2 * shape_match.REACH + 1
    x, y = np.meshgrid(np.arange(size) - shape_match.REACH, np.arange(size) - shape_match.REACH)
    others = {
        "noise": np.random.default_rng(0).uniform(size=(size, size)),
        "everything": np.ones((size, size)),
        "two discs": (np.hypot(np.abs(x) - 5, y) < 4).astype(float),
        "ring": ((np.hypot(x, y) < 8) & (np.hypot(x, y) > 4)).astype(float),
        "bar": ((np.abs(x) < 9) & (np.abs(y) < 3)).astype(float),
        "half disc": ((np.hypot(x, y + 3) < 8) & (y > -3)).astype(float),
    }
    for name, picture in others.items():
        assert max(found.match for found in match_shapes(picture).values()) < MIN_MATCH, name


def test_the_mean_over_frames_reduces_noise() -> None:
    at = along(16, 16, frames=33)
    noisy = masks("square", at, 6.0) + np.random.default_rng(0).normal(0, 0.3, (33, 32, 32))
    clean = mean_picture(masks("square", at, 6.0), at, 1.0)
    assert np.abs(mean_picture(noisy, at, 1.0) - clean).std() < 2 * 0.3 / np.sqrt(33)
