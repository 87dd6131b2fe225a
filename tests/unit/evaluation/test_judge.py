from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data import toy_world
from causvid.data.toy_world import Scene
from causvid.data.video_reader import read_frames
from causvid.data.video_writer import write_video
from causvid.evaluation import judge
from causvid.evaluation.judge import Verdict
from causvid.shapes import VideoShape

Clips = list[tuple[str, NDArray[np.uint8]]]

VIDEO = VideoShape(height=32, width=32, frames=33, fps=8)
RED_SQUARE = Scene(shape="square", colour="red", direction="left", background="gray")
ATTRIBUTES = ("shape", "colour", "direction", "background")


def rendered(scene: Scene, video: VideoShape = VIDEO) -> NDArray[np.uint8]:
    low, high = toy_world.radius_range(video)
    return toy_world.render(scene, video=video, start_xy=(10.3, 20.6), radius=(low + high) / 2)


def verdict_of(frames: NDArray[np.uint8], scene: Scene) -> Verdict:
    verdict = judge.judge(frames, scene.caption)
    assert verdict is not None
    return verdict


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """A third of all captions as the pipeline stores them: H.264, colour at half resolution."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    clips = []
    for index, caption in enumerate(toy_world.captions()[::3]):
        write_video(path, toy_world.clip_frames(caption, index, video=VIDEO, seed=0), fps=VIDEO.fps, crf=10)
        clips.append((caption, read_frames(path)))
    return clips


def test_real_decoded_clips_pass(decoded: Clips) -> None:
    means = judge.average([judge.judge(frames, caption) for caption, frames in decoded])
    assert means is not None
    assert means["n"] == len(decoded)
    for name in ("colour", "background", "shape", "motion", "velocity", "seen"):
        assert (means[name] or 0) >= 0.98, name
    assert means["area_cv"] is not None
    assert means["area_cv"] < 0.02
    assert means["frame_psnr"] is not None
    assert means["frame_psnr"] > 27


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_wrong_caption_costs_its_attribute_and_no_other(decoded: Clips, attribute: str) -> None:
    values = {
        "shape": toy_world.SHAPES,
        "colour": tuple(toy_world.COLOURS),
        "direction": tuple(toy_world.DIRECTIONS),
        "background": tuple(toy_world.BACKGROUNDS),
    }[attribute]
    judged = {"direction": "motion"}.get(attribute, attribute)
    for caption, frames in decoded[::8]:
        scene = toy_world.parse(caption)
        for wrong in set(values) - {getattr(scene, attribute)}:
            verdict = asdict(verdict_of(frames, replace(scene, **{attribute: wrong})))
            assert not verdict[judged], (caption, wrong)
            assert all(verdict[name] for name in {"shape", "colour", "motion", "background"} - {judged}), (
                caption,
                wrong,
            )


def test_ideal_rendering_scores_at_the_ceiling() -> None:
    verdict = verdict_of(rendered(RED_SQUARE), RED_SQUARE)
    assert verdict.velocity == verdict.seen == 1.0
    assert verdict.area_cv == pytest.approx(0, abs=0.01)
    assert verdict.frame_psnr > 30
    assert verdict_of(rendered(RED_SQUARE), replace(RED_SQUARE, colour="green")).frame_psnr < 20


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64), (96, 64)])
def test_size_and_speed_scale_with_the_video(height: int, width: int) -> None:
    video = VideoShape(height=height, width=width, frames=9, fps=8)
    for shape in toy_world.SHAPES:
        scene = replace(RED_SQUARE, shape=shape, direction="down")
        verdict = verdict_of(rendered(scene, video), scene)
        assert verdict.colour
        assert verdict.background
        assert verdict.shape
        assert verdict.motion
        assert verdict.velocity == 1.0


@pytest.mark.parametrize(
    "frames",
    [
        np.random.default_rng(0).integers(0, 256, (33, 32, 32, 3), dtype=np.uint8),
        np.full((33, 32, 32, 3), 7, dtype=np.uint8),
        np.full((1, 32, 32, 3), 128, dtype=np.uint8),
        np.where(np.indices((33, 32, 32, 3)).sum(axis=0) % 2, 255, 0).astype(np.uint8),
    ],
    ids=["noise", "blank", "one frame", "checkerboard"],
)
def test_no_object_is_no_credit_and_no_trouble(frames: NDArray[np.uint8]) -> None:
    verdict = verdict_of(frames, RED_SQUARE)
    assert not (verdict.colour)
    assert not (verdict.shape)
    assert not (verdict.motion)
    assert verdict.velocity == verdict.seen == 0.0
    assert verdict.area_cv is None
    assert np.isfinite(verdict.frame_psnr)
    assert verdict.frame_psnr < 20
    assert not verdict_of(frames, replace(RED_SQUARE, background="navy")).background


def test_an_object_that_vanishes_is_seen_for_as_long_as_it_was_there() -> None:
    frames = rendered(RED_SQUARE)
    frames[12:] = toy_world.BACKGROUNDS["gray"]
    verdict = verdict_of(frames, RED_SQUARE)
    assert not (verdict.colour)
    assert not (verdict.shape)
    assert not (verdict.motion)
    assert verdict.background
    assert verdict.seen == 12 / 33
    assert verdict.velocity == 11 / 32
    assert verdict.area_cv is not None
    assert verdict.area_cv > 1


def test_jerky_motion_has_the_right_direction_but_not_the_right_velocity() -> None:
    frames = np.repeat(rendered(RED_SQUARE)[::2], 2, axis=0)  # stands still, then jumps two pixels
    verdict = verdict_of(frames, RED_SQUARE)
    assert verdict.motion
    assert verdict.velocity == 0.0


def test_an_object_that_stands_still_does_not_move_right() -> None:
    verdict = verdict_of(np.repeat(rendered(RED_SQUARE)[:1], 33, axis=0), RED_SQUARE)
    assert verdict.colour
    assert verdict.shape
    assert not verdict.motion


def test_size_flicker_is_measured() -> None:
    parts = [toy_world.render(RED_SQUARE, video=VIDEO, start_xy=(9, 9), radius=radius) for radius in (5.0, 7.0)]
    frames = np.where((np.arange(33) % 2).astype(bool)[:, None, None, None], *parts)
    verdict = verdict_of(frames, RED_SQUARE)
    # Areas 25 : 49 in turn: the deviation is 12 around a mean of 37.
    assert verdict.area_cv == pytest.approx(12 / 37, rel=0.05)


def test_other_captions_have_no_verdict() -> None:
    assert judge.judge(rendered(RED_SQUARE), "a dog runs on a beach") is None
    assert judge.average([None, None]) is None
    assert judge.average([]) is None


def test_average_leaves_out_what_is_not_judged() -> None:
    verdict = verdict_of(rendered(RED_SQUARE), RED_SQUARE)
    means = judge.average([verdict, None, replace(verdict, motion=False, area_cv=None)])
    assert means is not None
    assert means["n"] == 2
    assert means["motion"] == 0.5
    assert means["area_cv"] == verdict.area_cv


def test_folder_is_judged_by_its_rows(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", rendered(RED_SQUARE), fps=8, crf=10)
    right = {"path": "a.mp4", "caption": RED_SQUARE.caption}
    wrong = {"path": "a.mp4", "caption": replace(RED_SQUARE, colour="cyan").caption}
    means = judge.judge_folder(tmp_path, [right, wrong])
    assert means is not None
    assert (means["n"], means["colour"], means["shape"]) == (2, 0.5, 1.0)
    assert judge.judge_folder(tmp_path, [{"path": "a.mp4", "caption": "a dog"}]) is None


@settings(max_examples=40, deadline=None)
@given(x=st.floats(0, 40), y=st.floats(0, 24), shape=st.sampled_from(toy_world.SHAPES))
def test_centres_are_found_anywhere_on_the_torus(x: float, y: float, shape: str) -> None:
    size = np.array([40, 24])
    mask = toy_world.shape_mask(shape, 24, 40, [(x, y)], 5.0)
    error = (judge._torus_centers(mask)[0] - (x, y) + size / 2) % size - size / 2
    assert np.abs(error).max() < 0.15
