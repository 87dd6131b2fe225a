"""Each corruption lowers the scores that it should lower, and a stronger corruption lowers these scores more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.evaluation import corruptions, judge, quality
from causvid.evaluation.clips import renderings
from causvid.evaluation.corruptions import FLOORS
from causvid.evaluation.features import FeatureNet
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=13, fps=8)
CAPTIONS = toy_world.captions()[::6]
Frames = NDArray[np.uint8]
Scores = Callable[[str, float], dict[str, float]]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def clips() -> list[Frames]:
    return [toy_world.clip_frames(caption, k, video=VIDEO, seed=0) for k, caption in enumerate(CAPTIONS)]


@pytest.fixture(scope="module")
def scores(clips: list[Frames], world: Path) -> Scores:
    net = FeatureNet(world / "vae")
    reference = net(renderings(CAPTIONS, VIDEO, crf=10))

    def of(name: str, strength: float) -> dict[str, float]:
        corrupt = FLOORS[name][0]
        damaged = [corrupt(frames, strength, generator(k)) for k, frames in enumerate(clips)]
        judged = judge.judge_videos(damaged, CAPTIONS, [])
        assert judged is not None
        return {**judged, "frechet_distance": quality.frechet_distance(net(damaged), reference)}

    return of


@pytest.mark.parametrize(
    ("name", "weak", "strong", "worse"),
    [
        ("frozen", 0.3, 1.0, ("frechet_distance", "temporal_psnr", "velocity")),
        ("blurred", 0.03, 0.1, ("frechet_distance", "frame_psnr", "temporal_psnr")),
        ("noise", 0.1, 0.2, ("frechet_distance", "frame_psnr", "temporal_psnr", "velocity")),
        ("vanished", 0.3, 1.0, ("frechet_distance", "frame_psnr", "temporal_psnr", "seen", "colour", "shape")),
    ],
)
def test_stronger_corruptions_have_worse_scores(
    scores: Scores, name: str, weak: float, strong: float, worse: tuple[str, ...]
) -> None:
    none, little, much = (scores(name, strength) for strength in (0.0, weak, strong))
    for measure in worse:
        sign = -1 if measure == "frechet_distance" else 1
        assert sign * none[measure] > sign * little[measure] > sign * much[measure], measure


def test_corruptions_do_not_change_unrelated_scores(scores: Scores) -> None:
    frozen, blurred = scores("frozen", 1.0), scores("blurred", 0.03)
    assert frozen["motion"] == 0
    assert frozen["colour"] == frozen["shape"] == frozen["seen"] == 1
    assert blurred["velocity"] == blurred["motion"] == blurred["shape"] == 1


def test_full_strength_gives_low_scores(scores: Scores) -> None:
    for name, (_, strength) in FLOORS.items():
        found, clean = scores(name, strength), scores(name, 0.0)
        assert found["frechet_distance"] > 10 * clean["frechet_distance"], name
        assert min(found["frame_psnr"], found["temporal_psnr"]) < 21, name


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_strength_zero_changes_nothing_and_shape_and_dtype_are_kept(clips: list[Frames], name: str) -> None:
    corrupt, strength = FLOORS[name]
    before = clips[0].copy()
    assert np.array_equal(corrupt(clips[0], 0.0, generator()), before)
    damaged = corrupt(clips[0], strength, generator())
    assert damaged.shape == before.shape
    assert damaged.dtype == np.uint8
    assert not np.array_equal(damaged, before)
    assert np.array_equal(clips[0], before), "the input was changed"
    assert np.array_equal(damaged, corrupt(clips[0], strength, generator())), "not reproducible from the generator"


def test_frozen_repeats_the_given_share_of_frames(clips: list[Frames]) -> None:
    found = corruptions.frozen(clips[0][:10], 0.4, generator())
    assert np.array_equal(found[:6], clips[0][:6])
    assert all(np.array_equal(frame, clips[0][5]) for frame in found[6:])


def test_blur_of_a_point_is_a_gaussian() -> None:
    frames = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    frames[0, 3, 30] = 255
    found = corruptions.blurred(frames, 1.5 / 32, generator())[0, :, :, 0].astype(float)
    away = lambda places, at: (places - at + 16) % 32 - 16  # noqa: E731
    y, x = away(np.arange(32)[:, None], 3), away(np.arange(32), 30)
    expected = 255 * np.exp(-(x**2 + y**2) / (2 * 1.5**2)) / (2 * np.pi * 1.5**2)
    assert found == pytest.approx(expected, abs=0.6)


def test_noise_has_the_given_deviation_and_is_independent_per_frame() -> None:
    found = corruptions.noise(np.full((4, 32, 32, 3), 128, dtype=np.uint8), 0.1, generator()).astype(float)
    assert found.std() == pytest.approx(25.5, rel=0.03)
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] == pytest.approx(0, abs=0.1)


def test_vanished_has_the_given_probability(clips: list[Frames]) -> None:
    frame = clips[0][:1]
    found = [corruptions.vanished(frame, 0.25, generator(k)) for k in range(400)]
    vanished = np.array([bool((damaged == damaged[0, 0, 0]).all()) for damaged in found])
    assert vanished.mean() == pytest.approx(0.25, abs=0.06)
    assert all(lost or np.array_equal(damaged, frame) for lost, damaged in zip(vanished, found, strict=True))
