from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.data.sources.toy_world import Scene
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.evaluation import judge
from causvid.evaluation.judge import Verdict
from causvid.runtime.shapes import VideoShape

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
    """Return clips of a third of all captions, decoded from H.264 with halved colour resolution, as in the pipeline."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    clips = []
    for index, caption in enumerate(toy_world.captions()[::3]):
        write_video(path, toy_world.clip_frames(caption, index, video=VIDEO, seed=0), fps=VIDEO.fps, crf=10)
        clips.append((caption, read_frames(path)))
    return clips


def test_decoded_real_clips_have_perfect_scores(decoded: Clips) -> None:
    means = judge.average([judge.judge(frames, caption) for caption, frames in decoded])
    assert means is not None
    assert means["n"] == len(decoded)
    for name in ("colour", "background", "shape", "motion", "velocity", "seen"):
        assert means[name] == 1, name
    assert means["area_cv"] is not None
    assert means["area_cv"] < 0.02
    for name in ("frame_psnr", "temporal_psnr"):
        assert 27 < (means[name] or 0) < 35, name


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_wrong_caption_changes_the_score_of_its_attribute_only(decoded: Clips, attribute: str) -> None:
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
def test_videos_without_an_object_have_low_finite_scores(frames: NDArray[np.uint8]) -> None:
    verdict = verdict_of(frames, RED_SQUARE)
    assert not (verdict.colour)
    assert not (verdict.shape)
    assert not (verdict.motion)
    assert verdict.velocity == verdict.seen == 0.0
    assert verdict.area_cv is None
    for psnr in (verdict.frame_psnr, verdict.temporal_psnr):
        assert np.isfinite(psnr)
        assert psnr < 20
    assert not verdict_of(frames, replace(RED_SQUARE, background="navy")).background


def test_a_vanishing_object_is_seen_in_the_frames_that_show_it() -> None:
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
    # the object stands still for one step, and then jumps by two pixels
    frames = np.repeat(rendered(RED_SQUARE)[::2], 2, axis=0)
    verdict = verdict_of(frames, RED_SQUARE)
    assert verdict.motion
    assert verdict.velocity == 0.0


def test_a_static_object_has_wrong_motion() -> None:
    verdict = verdict_of(np.repeat(rendered(RED_SQUARE)[:1], 33, axis=0), RED_SQUARE)
    assert verdict.colour
    assert verdict.shape
    assert not verdict.motion


def test_size_flicker_is_measured() -> None:
    parts = [toy_world.render(RED_SQUARE, video=VIDEO, start_xy=(9, 9), radius=radius) for radius in (5.0, 7.0)]
    frames = np.where((np.arange(33) % 2).astype(bool)[:, None, None, None], *parts)
    verdict = verdict_of(frames, RED_SQUARE)
    # The areas have the ratio 25 : 49 in alternation; their mean is 37 and their standard deviation is 12.
    assert verdict.area_cv == pytest.approx(12 / 37, rel=0.05)


def test_other_captions_have_no_verdict() -> None:
    assert judge.judge(rendered(RED_SQUARE), "a dog runs on a beach") is None
    assert judge.average([None, None]) is None
    assert judge.average([]) is None


def test_average_ignores_missing_verdicts_and_values() -> None:
    verdict = verdict_of(rendered(RED_SQUARE), RED_SQUARE)
    means = judge.average([verdict, None, replace(verdict, motion=False, area_cv=None)])
    assert means is not None
    assert means["n"] == 2
    assert means["motion"] == 0.5
    assert means["area_cv"] == verdict.area_cv


def test_videos_are_compared_with_their_own_captions() -> None:
    frames, wrong = rendered(RED_SQUARE), replace(RED_SQUARE, colour="cyan").caption
    means = judge.judge_videos([frames, frames, frames], [RED_SQUARE.caption, "a dog", wrong], [])
    assert means is not None
    assert (means["n"], means["colour"], means["shape"]) == (2, 0.5, 1.0)
    assert means["start_spread"] is means["sample_spread"] is None
    assert judge.judge_videos([frames], ["a dog"], []) is None


def test_spread_compares_videos_of_the_same_caption_only() -> None:
    frames = [rendered(RED_SQUARE)] * 2 + [rendered(replace(RED_SQUARE, colour="blue"))]
    captions = [RED_SQUARE.caption] * 2 + [replace(RED_SQUARE, colour="blue").caption]
    means = judge.judge_videos(frames, captions, [])
    assert means is not None
    assert means["start_spread"] == means["sample_spread"] == 0


def test_averages_are_computed_per_block() -> None:
    frames = rendered(RED_SQUARE)
    frames[9:21] = toy_world.BACKGROUNDS["gray"]  # the second block shows no object
    blocks = [range(9), range(9, 21), range(21, 33)]
    means = judge.judge_videos([frames, rendered(RED_SQUARE)], [RED_SQUARE.caption] * 2, blocks)
    assert means is not None
    assert [block["seen"] for block in means["blocks"]] == [1, 0.5, 1]
    # One of the twelve steps into the third block counts as wrong, because the frame before the step shows no object.
    assert [block["velocity"] for block in means["blocks"]] == [1, 0.5, (11 + 12) / 24]
    first, second, third = (block["frame_psnr"] for block in means["blocks"])
    assert first == pytest.approx(third, abs=0.1)
    assert second < first - 5
    (whole,) = judge.judge_videos([frames], [RED_SQUARE.caption], [range(33)])["blocks"]  # type: ignore[index]
    verdict = verdict_of(frames, RED_SQUARE)
    assert whole == {name: pytest.approx(getattr(verdict, name)) for name in ("velocity", "frame_psnr", "seen")}


def test_a_first_block_of_one_frame_has_no_velocity() -> None:
    means = judge.judge_videos([rendered(RED_SQUARE)], [RED_SQUARE.caption], [range(1), range(1, 33)])
    assert means is not None
    assert [block["velocity"] for block in means["blocks"]] == [None, 1.0]


def in_pieces(scene: Scene, keep: str) -> NDArray[np.uint8]:
    """Return the scene with a part of its object removed."""
    frames, start = rendered(scene), (10.3, 20.6)
    centers = toy_world.positions(scene, video=VIDEO, start_xy=start)
    dx = (np.arange(32) - centers[:, :1] + 16) % 32 - 16
    dy = (np.arange(32) - centers[:, 1:] + 16) % 32 - 16
    x, y = dx[:, None, :] + 0 * dy[:, :, None], dy[:, :, None] + 0 * dx[:, None, :]
    kept = {"bottom": y > 0, "left": x < 0, "three quarters": (x > 0) | (y > 0), "without tip": y > -2}[keep]
    return np.where(kept[..., None], frames, np.array(toy_world.BACKGROUNDS[scene.background])).astype(np.uint8)


@pytest.mark.parametrize("shape", toy_world.SHAPES)
@pytest.mark.parametrize("keep", ["bottom", "left", "three quarters", "without tip"])
def test_an_incomplete_shape_is_not_recognised(shape: str, keep: str) -> None:
    frames = in_pieces(replace(RED_SQUARE, shape=shape), keep)
    assert verdict_of(frames, RED_SQUARE).seen == 1
    assert not any(verdict_of(frames, replace(RED_SQUARE, shape=name)).shape for name in toy_world.SHAPES)


def test_a_dome_is_not_a_triangle() -> None:
    triangle = replace(RED_SQUARE, shape="triangle")
    centers = toy_world.positions(triangle, video=VIDEO, start_xy=(10.3, 20.6))[:, :, None, None]
    x = (np.arange(32) - centers[:, 0] + 16) % 32 - 16
    y = (np.arange(32)[:, None] - centers[:, 1] + 16) % 32 - 16
    inside = (np.hypot(x / 1.15, (y - 4.8) / 1.9) <= 6) & (y <= 4.8)
    colours = np.array(toy_world.COLOURS["red"]), np.array(toy_world.BACKGROUNDS["gray"])
    verdict = verdict_of(np.where(inside[..., None], *colours).astype(np.uint8), triangle)
    assert verdict.seen == 1
    assert not verdict.shape


def test_blur_and_noise_do_not_change_the_shape(decoded: Clips) -> None:
    draw = np.random.default_rng(0)
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 0.9) ** 2)
    for caption, frames in decoded[::2]:
        values = frames.astype(np.float64)
        for axis in (1, 2):
            shifted = [w * np.roll(values, k, axis=axis) for k, w in enumerate(weights / weights.sum(), start=-4)]
            values = np.sum(shifted, axis=0)
        damaged = np.clip(values + draw.normal(0, 15, values.shape), 0, 255).astype(np.uint8)
        assert verdict_of(damaged, toy_world.parse(caption)).shape, caption


def test_temporal_psnr_compares_all_frames_with_the_true_motion() -> None:
    frames = rendered(RED_SQUARE)
    moving, still = verdict_of(frames, RED_SQUARE), verdict_of(np.repeat(frames[:1], 33, axis=0), RED_SQUARE)
    assert moving.temporal_psnr == pytest.approx(moving.frame_psnr, abs=0.5)
    assert still.frame_psnr == pytest.approx(moving.frame_psnr, abs=0.5)
    assert still.temporal_psnr < moving.temporal_psnr - 10
    # the object stops after three quarters of the clip
    late = np.concatenate([frames[:25], np.repeat(frames[24:25], 8, axis=0)])
    assert still.temporal_psnr < verdict_of(late, RED_SQUARE).temporal_psnr < moving.temporal_psnr - 3


def test_trembling_lowers_temporal_psnr_but_not_frame_psnr() -> None:
    draw = np.random.default_rng(0)
    parts = [
        toy_world.render(RED_SQUARE, video=VIDEO, start_xy=(10 + x, 20 + y), radius=6.0)[k]
        for k, (x, y) in enumerate(draw.normal(0, 1.5, (33, 2)))
    ]
    verdict, steady = verdict_of(np.stack(parts), RED_SQUARE), verdict_of(rendered(RED_SQUARE), RED_SQUARE)
    assert verdict.frame_psnr == pytest.approx(steady.frame_psnr, abs=1)
    assert verdict.temporal_psnr < steady.temporal_psnr - 5


@settings(max_examples=20, deadline=None)
@given(x=st.floats(0, 32), y=st.floats(0, 32), direction=st.sampled_from(sorted(toy_world.DIRECTIONS)))
def test_the_start_is_fitted_to_the_frames_that_show_the_object(x: float, y: float, direction: str) -> None:
    scene = replace(RED_SQUARE, direction=direction)
    frames = toy_world.render(scene, video=VIDEO, start_xy=(x, y), radius=6.0)
    frames[:7] = frames[20:] = toy_world.BACKGROUNDS["gray"]
    start = judge._fit_start(judge._find_object(frames, VIDEO), scene, VIDEO)
    error = (np.array(start) - (x, y) + 16) % 32 - 16
    assert np.abs(error).max() < 0.2


@settings(max_examples=40, deadline=None)
@given(x=st.floats(0, 40), y=st.floats(0, 24), shape=st.sampled_from(toy_world.SHAPES))
def test_centres_are_correct_anywhere_on_the_torus(x: float, y: float, shape: str) -> None:
    size = np.array([40, 24])
    mask = toy_world.shape_mask(shape, 24, 40, [(x, y)], 5.0)
    error = (judge._torus_centers(mask)[0] - (x, y) + size / 2) % size - size / 2
    assert np.abs(error).max() < 0.15
