"""Analytic judge of the toy world: does a video show what its caption says? No training, no weights.

Shapes: F frames, H and W in pixels. The object of a frame is what stands out from the frame's median colour; its
coverage is the share of every pixel that it fills. Sizes and speeds are the world's own, so they scale with the video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.data import toy_world
from causvid.data.toy_world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, Scene
from causvid.data.video_reader import read_frames
from causvid.runtime.progress import progress
from causvid.shapes import VideoShape

Floats = NDArray[np.float64]

MIN_CONTRAST = 60.0  # RGB distance to the background; the world's own colours are 160 or more away
NOISE = (
    0.1  # of the contrast, cut at both ends: at 0.2 the half-resolution colour of 4:2:0 moves in steps of two pixels
)
AREA_RANGE = (1 / 3, 3.0)  # of the world's mean object; outside it there is no one object
MAJORITY = 0.5  # share of frames, pixels or steps that decides a yes
MIN_OVERLAP = 0.6  # intersection over union with the best template; real clips reach 0.96, other shapes 0.79
MIN_SPEED = 0.3  # of the true speed, for "it moves"
VELOCITY_TOLERANCE = 0.5  # of the true speed, for "this step is right"
TEMPLATE_SIZES = (0.94, 1.0, 1.06)  # around the radius that the measured area gives
ROUNDING_MSE = 1 / 12  # of whole brightness levels: the error that no uint8 video is without


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge says of one video.

    colour, background, shape, motion: right or wrong. velocity: share of steps between frames whose velocity is within
    half a true step of the truth. seen: share of frames that show one object. area_cv: standard deviation over mean of
    the object's area (0 = no size flicker); None when no frame shows one. frame_psnr: dB against the ideal rendering of
    the caption at the measured places, averaged over frames.
    """

    colour: bool
    background: bool
    shape: bool
    motion: bool
    velocity: float
    seen: float
    area_cv: float | None
    frame_psnr: float


@dataclass(frozen=True, kw_only=True)
class _Object:
    """What moves in a video: coverage [F, H, W] in [0, 1], area [F] and centres [F, 2] in pixels, seen [F]."""

    coverage: Floats
    area: Floats
    centers: Floats
    seen: NDArray[np.bool_]


def judge(frames: NDArray[np.uint8], caption: str) -> Verdict | None:
    """The verdict on ``frames``, uint8 [F, H, W, 3] RGB; None when ``caption`` is not of the toy world."""
    try:
        scene = toy_world.parse(caption)
    except ValueError:
        return None
    count, height, width, _ = frames.shape
    # The world moves so many pixels a frame whatever the rate, so the rate does not matter here.
    video = VideoShape(height=height, width=width, frames=count, fps=1)
    found = _find_object(frames, video)
    names = _nearest_colour(frames)
    visible = bool(found.seen.mean() >= MAJORITY)
    core = names[(found.coverage >= 1) & found.seen[:, None, None]]
    shape, radius = _best_template(found, scene)
    return Verdict(
        colour=visible and _is_mostly(core, scene.colour),
        background=_is_mostly(names, scene.background),
        shape=visible and shape == scene.shape,
        motion=_moves_right(found, scene, video),
        velocity=_right_steps(found, scene, video),
        seen=float(found.seen.mean()),
        area_cv=float(shown.std() / shown.mean()) if (shown := found.area * found.seen).any() else None,
        frame_psnr=_frame_psnr(frames, found, scene, np.clip(radius, *toy_world.radius_range(video))),
    )


def judge_folder(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None] | None:
    """Averages over the videos that the manifest ``rows`` list in ``folder``; None when no caption is of the world."""
    shown = progress(rows, total=len(rows), what="judge")
    return average([judge(read_frames(folder / row["path"]), row["caption"]) for row in shown])


def average(verdicts: Sequence[Verdict | None]) -> dict[str, float | None] | None:
    """Mean of every field over the verdicts that are not None, with their count ``n``; None when there is none.

    area_cv is averaged over the videos that show an object, and is None when none does.
    """
    judged = [asdict(verdict) for verdict in verdicts if verdict is not None]
    if not judged:
        return None
    means: dict[str, float | None] = {"n": len(judged)}
    for name in judged[0]:
        values = [float(verdict[name]) for verdict in judged if verdict[name] is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def _find_object(frames: NDArray[np.uint8], video: VideoShape) -> _Object:
    """Whatever stands out from the median colour of each frame, by how much of its own contrast it does."""
    pixels = frames.reshape(video.frames, -1, 3)
    background = np.median(pixels, axis=1)[:, None, None, :]
    distance = np.linalg.norm(frames - background, axis=-1)
    low, high = toy_world.radius_range(video)
    # The smallest triangle fills about twice this many pixels, so this one lies inside every object.
    rank = max(1, round(low**2))
    contrast = np.partition(distance.reshape(video.frames, -1), -rank, axis=1)[:, -rank]
    share = distance / np.maximum(contrast, 1.0)[:, None, None]
    coverage = np.clip((share - NOISE) / (1 - 2 * NOISE), 0.0, 1.0)
    area = coverage.sum(axis=(1, 2))
    usual = np.pi * ((low + high) / 2) ** 2
    seen = (contrast >= MIN_CONTRAST) & (area > AREA_RANGE[0] * usual) & (area < AREA_RANGE[1] * usual)
    return _Object(coverage=coverage, area=area, centers=_torus_centers(coverage), seen=seen)


def _torus_centers(weight: Floats) -> Floats:
    """Centre of mass of each [F, H, W] weight on the torus, [F, 2] as (x, y); weightless frames give (0, 0)."""
    axes = []
    for axis in (1, 2):  # summing over rows leaves x, over columns y
        profile = weight.sum(axis=axis)
        size = profile.shape[1]
        places = np.arange(size)
        rough = np.angle(profile @ np.exp(2j * np.pi * places / size)) * size / (2 * np.pi)
        # The circular mean is not the centre of a lopsided shape; the mean of the offsets around it is.
        offset = (places - rough[:, None] + size / 2) % size - size / 2
        axes.append((rough + (profile * offset).sum(axis=1) / np.maximum(profile.sum(axis=1), 1e-9)) % size)
    return np.stack(axes, axis=-1)


@cache
def _palette() -> tuple[tuple[str, ...], Floats]:
    named = {**COLOURS, **BACKGROUNDS}
    return tuple(named), np.array(list(named.values()), dtype=np.float64)


def _nearest_colour(frames: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Index into the palette of every pixel's nearest entry, [F, H, W]."""
    entries = _palette()[1]
    nearest: NDArray[np.intp] = ((entries**2).sum(axis=1) - 2 * (frames.astype(np.float64) @ entries.T)).argmin(axis=-1)
    return nearest


def _is_mostly(names: NDArray[np.intp], wanted: str) -> bool:
    return bool(names.size) and bool((names == _palette()[0].index(wanted)).mean() > MAJORITY)


@cache
def _unit_area(shape: str) -> float:
    """Area of a shape of radius 1, from its own mask."""
    radius = 32.0
    return float(toy_world.shape_mask(shape, 128, 128, (64.0, 64.0), radius).sum()) / radius**2


def _best_template(found: _Object, scene: Scene) -> tuple[str | None, float]:
    """The shape whose mask overlaps the object best (None when none does well), and the scene's shape's best radius."""
    if not found.seen.any():
        return None, 0.0
    coverage, centers = found.coverage[found.seen], found.centers[found.seen]
    area = float(np.median(found.area[found.seen]))
    best = {}
    for shape in SHAPES:
        fits = []
        for size in TEMPLATE_SIZES:
            radius = size * float(np.sqrt(area / _unit_area(shape)))
            mask = toy_world.shape_mask(shape, coverage.shape[1], coverage.shape[2], centers, radius)
            union = np.maximum(coverage, mask).sum(axis=(1, 2))
            fits.append((float((np.minimum(coverage, mask).sum(axis=(1, 2)) / union).mean()), radius))
        best[shape] = max(fits)
    winner = max(best, key=lambda shape: best[shape][0])
    return (winner if best[winner][0] >= MIN_OVERLAP else None), best[scene.shape][1]


def _steps(found: _Object, video: VideoShape) -> tuple[Floats, NDArray[np.bool_]]:
    """Moves between neighbouring frames the short way round, [F-1, 2], and which of them join two seen frames."""
    size = np.array([video.width, video.height])
    moves = (np.diff(found.centers, axis=0) + size / 2) % size - size / 2
    return moves, found.seen[1:] & found.seen[:-1]


def _moves_right(found: _Object, scene: Scene, video: VideoShape) -> bool:
    moves, usable = _steps(found, video)
    if not usable.size or usable.mean() < MAJORITY:
        return False
    mean = moves[usable].mean(axis=0)
    speeds = {name: float(mean @ np.array(direction)) for name, direction in DIRECTIONS.items()}
    along = speeds[scene.direction]
    return along == max(speeds.values()) and along > MIN_SPEED * toy_world.speed(video)


def _right_steps(found: _Object, scene: Scene, video: VideoShape) -> float:
    moves, usable = _steps(found, video)
    true = toy_world.speed(video) * np.array(DIRECTIONS[scene.direction])
    right = usable & (np.linalg.norm(moves - true, axis=-1) <= VELOCITY_TOLERANCE * toy_world.speed(video))
    return float(right.sum() / max(1, right.size))


def _frame_psnr(frames: NDArray[np.uint8], found: _Object, scene: Scene, radius: float) -> float:
    mask = toy_world.shape_mask(scene.shape, frames.shape[1], frames.shape[2], found.centers, radius)[..., None]
    background, colour = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[scene.colour])
    error = ((frames - (background + mask * (colour - background))) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255.0**2 / np.maximum(error, ROUNDING_MSE))).mean())
