"""The toy world has fixed captions, moves shapes on a torus, and is reproducible."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.data.sources import toy_world
from causvid.data.sources.toy_world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, Scene, shape_mask
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)
SCENE = Scene(shape="triangle", colour="red", direction="left", background="navy")


def test_the_288_captions_are_sorted_distinct_and_parse_back() -> None:
    captions = toy_world.captions()
    assert len(set(captions)) == 288
    assert captions == sorted(captions)
    assert [toy_world.parse(caption).caption for caption in captions] == captions
    assert toy_world.parse("a red square moves left over a navy background") == Scene(
        shape="square", colour="red", direction="left", background="navy"
    )


@pytest.mark.parametrize("caption", ["", "a red square", "a pink square moves left over a navy background"])
def test_a_caption_that_is_not_of_the_toy_world_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="not a caption of the toy world"):
        toy_world.parse(caption)


SETS = ("training", "tuning", "scoring")


def _listed(name: str) -> list[str]:
    return Path("data/inputs/toy_world", f"{name}.txt").read_text(encoding="utf-8").splitlines()


def test_the_three_sets_share_no_caption_and_contain_all() -> None:
    assert sorted(caption for name in SETS for caption in _listed(name)) == toy_world.captions()
    assert [len(_listed(name)) for name in SETS] == [224, 32, 32]


def test_the_sets_never_change() -> None:
    # If the three sets changed, the captions for scoring would include captions on which the shipped weights were
    # trained.
    digest = hashlib.sha256("|".join("\n".join(_listed(name)) for name in SETS).encode()).hexdigest()
    assert digest == "dac227a5d311aa46604f10fda76bc15f8137c3a057e7d0ce7b53b39c5dec43d9"


@pytest.mark.parametrize("name", ["tuning", "scoring"])
def test_every_value_is_scored_about_equally_often(name: str) -> None:
    for values in zip(*(astuple(toy_world.parse(caption)) for caption in _listed(name)), strict=True):
        times = Counter(values)
        assert max(times.values()) - min(times.values()) <= 1


def test_training_clips_use_all_captions_before_a_caption_is_repeated() -> None:
    known = _listed("training")
    captions = toy_world.clip_captions(known, 600, seed=3)
    assert sorted(captions[:224]) == sorted(captions[224:448]) == sorted(known)
    assert captions[:224] != captions[224:448]
    assert captions[:40] == toy_world.clip_captions([*reversed(known), known[0]], 40, seed=3)
    assert captions[:40] != toy_world.clip_captions(known, 40, seed=4)


def test_a_clip_with_an_unknown_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="'a dog' is not a caption of the toy world"):
        toy_world.clip_captions(["a dog"], 1, seed=0)


@given(
    shape=st.sampled_from(SHAPES),
    x=st.floats(0, 40, exclude_max=True),
    y=st.floats(0, 32, exclude_max=True),
    radius=st.floats(5.5, 6.5),
)
def test_a_shape_keeps_its_area_and_centre_at_every_position(shape: str, x: float, y: float, radius: float) -> None:
    height, width = 32, 40
    covered = shape_mask(shape, height, width, (x, y), radius)
    assert covered.shape == (height, width)
    assert covered.min() >= 0
    assert covered.max() == 1
    area = {"circle": np.pi, "square": 1.8**2, "triangle": 1.2 * 2.4}[shape] * radius**2
    assert covered.sum() == pytest.approx(area, rel=0.03)
    for coverage, size, center in ((covered.sum(0), width, x), (covered.sum(1), height, y)):
        offsets = (np.arange(size) - center + size / 2) % size - size / 2
        assert abs(np.average(offsets, weights=coverage)) < 0.1  # tolerance in pixels


def test_many_centres_give_many_masks() -> None:
    centers = np.array([[3.0, 4.5], [30.2, 1.0]])
    both = shape_mask("circle", 32, 32, centers, 6.0)
    assert np.array_equal(both, np.stack([shape_mask("circle", 32, 32, center, 6.0) for center in centers]))


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="'star'"):
        shape_mask("star", 32, 32, (0, 0), 6.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_shape_moves_one_pixel_a_frame_round_the_torus(direction: str) -> None:
    scene = Scene(shape="triangle", colour="red", direction=direction, background="navy")
    video = VideoShape(height=32, width=32, frames=33, fps=8)
    frames = toy_world.render(scene, video=video, start_xy=(1.3, 30.6), radius=6.0)
    dx, dy = DIRECTIONS[direction]
    for index in (1, 20, 32):
        moved = np.roll(frames[0], (index * dy, index * dx), axis=(0, 1))
        assert np.abs(moved.astype(int) - frames[index]).max() <= 1  # the wrapped position is rounded
    assert np.array_equal(frames[0], frames[32])


def test_sizes_and_speed_scale_with_the_smaller_side() -> None:
    large = VideoShape(height=64, width=96, frames=9, fps=8)
    assert toy_world.speed(large) == 2 * toy_world.speed(VIDEO) == 2
    assert toy_world.radius_range(large) == (11, 13)
    frames = toy_world.render(SCENE, video=large, start_xy=(40, 30), radius=12)
    assert frames.shape == (9, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(np.roll(frames[0], -2, axis=1), frames[1])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_colours_are_those_of_the_palette(colour: str, background: str) -> None:
    scene = Scene(shape="circle", colour=colour, direction="up", background=background)
    frames = toy_world.render(scene, video=VIDEO, start_xy=(16, 16), radius=6)
    assert tuple(frames[0, 16, 16]) == COLOURS[colour]
    assert tuple(frames[0, 0, 0]) == BACKGROUNDS[background]


def test_a_clip_depends_on_seed_and_index_only() -> None:
    def clip(index: int, seed: int) -> bytes:
        return toy_world.clip_frames(SCENE.caption, index, video=VIDEO, seed=seed).tobytes()

    assert clip(5, 0) == clip(5, 0)
    assert len({clip(5, 0), clip(6, 0), clip(5, 1)}) == 3
