"""Analytic judge of the toy world: does a video show what its caption says? No training, no weights.

Shapes: F frames, H and W in pixels. The object of a frame is what stands out from the frame's median colour; its
coverage is the share of every pixel that it fills. Sizes and speeds are the world's own, so they scale with the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.data.sources.toy_world import BACKGROUNDS, COLOURS, DIRECTIONS, Scene
from causvid.evaluation import shape_match, spread
from causvid.harness.progress import progress
from causvid.runtime.shapes import VideoShape
from causvid.runtime.text import prompt_list

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]
Averages = dict[str, Any]

MIN_CONTRAST = 60.0  # RGB distance to the background; the world's own colours are 160 or more away
NOISE = (
    0.1  # of the contrast, cut at both ends: at 0.2 the half-resolution colour of 4:2:0 moves in steps of two pixels
)
AREA_RANGE = (1 / 3, 3.0)  # of the world's mean object; outside it there is no one object
MAJORITY = 0.5  # share of frames, pixels or steps that decides a yes
MIN_SPEED = 0.3  # of the true speed, for "it moves"
VELOCITY_TOLERANCE = 0.5  # of the true speed, for "this step is right"
ROUNDING_MSE = 1 / 12  # of whole brightness levels: the error that no uint8 video is without


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge says of one video.

    colour, background, shape, motion: right or wrong. velocity: share of steps between frames whose velocity is within
    half a true step of the truth. seen: share of frames that show one object. area_cv: standard deviation over mean of
    the object's area (0 = no size flicker); None when no frame shows one. frame_psnr: dB against the ideal rendering of
    the caption at the measured places, averaged over frames. temporal_psnr: the same against the caption's rigid true
    motion from one start, fitted to all frames.
    """

    colour: bool
    background: bool
    shape: bool
    motion: bool
    velocity: float
    seen: float
    area_cv: float | None
    frame_psnr: float
    temporal_psnr: float


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A verdict, and frame by frame what it averages.

    seen [F]; psnr [F] in dB, of frame_psnr; right [F-1]: whether the step into frame 1, 2, ... has the true velocity.
    start: the object's centre (x, y) in the first frame, None when that frame shows no object.
    """

    verdict: Verdict
    seen: NDArray[np.bool_]
    psnr: Floats
    right: NDArray[np.bool_]
    start: Floats | None


@dataclass(frozen=True, kw_only=True)
class _Object:
    """What moves in a video: difference [F, H, W, 3] to each frame's background, coverage [F, H, W] in [0, 1].

    And area [F] and centres [F, 2] in pixels, seen [F].
    """

    difference: NDArray[np.float32]
    coverage: Floats
    area: Floats
    centers: Floats
    seen: NDArray[np.bool_]


def judge(frames: Frames, caption: str) -> Verdict | None:
    """The verdict on ``frames``, uint8 [F, H, W, 3] RGB; None when ``caption`` is not of the toy world."""
    scene = scene_of(caption)
    return examine(frames, scene).verdict if scene else None


def scene_of(caption: str) -> Scene | None:
    """The scene that ``caption`` describes; None when it is not of the toy world."""
    try:
        return toy_world.parse(caption)
    except ValueError:
        return None


def examine(frames: Frames, scene: Scene) -> Examination:
    """The verdict on ``frames``, uint8 [F, H, W, 3] RGB, that should show ``scene``, with what it averages."""
    count, height, width, _ = frames.shape
    # The world moves so many pixels a frame whatever the rate, so the rate does not matter here.
    video = VideoShape(height=height, width=width, frames=count, fps=1)
    found = _find_object(frames, video)
    names = _nearest_colour(frames)
    visible = bool(found.seen.mean() >= MAJORITY)
    core = names[(found.coverage >= 1) & found.seen[:, None, None]]
    shape, radius = _fit_shape(found, scene, video)
    right = _right_steps(found, scene, video)
    psnr = _psnr(frames, scene, found.centers, radius)
    moved = toy_world.positions(scene, video=video, start_xy=_fit_start(found, scene, video))
    verdict = Verdict(
        colour=visible and _is_mostly(core, scene.colour),
        background=_is_mostly(names, scene.background),
        shape=visible and shape == scene.shape,
        motion=_moves_right(found, scene, video),
        velocity=float(right.sum() / max(1, right.size)),
        seen=float(found.seen.mean()),
        area_cv=float(shown.std() / shown.mean()) if (shown := found.area * found.seen).any() else None,
        frame_psnr=float(psnr.mean()),
        temporal_psnr=float(_psnr(frames, scene, moved, radius).mean()),
    )
    start = found.centers[0] if found.seen[0] else None
    return Examination(verdict=verdict, seen=found.seen, psnr=psnr, right=right, start=start)


def judge_videos(videos: Sequence[Frames], captions: Sequence[str], blocks: Sequence[range]) -> Averages | None:
    """Averages over ``videos`` [F, H, W, 3] that should show ``captions``; None when no caption is of the world.

    Returns what ``average`` does; ``start_spread`` and ``sample_spread`` of causvid.evaluation.spread, None when no two
    videos share a caption; ``blocks``: {velocity, frame_psnr, seen} over the frames of each of ``blocks``, a step
    counting in the block it leads into, velocity None where there is no step.
    """
    captions = prompt_list(captions, "captions")
    if len(captions) != len(videos):
        raise ValueError(f"captions has {len(captions)} entries, videos {len(videos)}; give one caption per video")
    found: list[Examination] = []
    spreads: list[spread.Spread] = []
    scenes = {scene: [k for k, text in enumerate(captions) if text == scene.caption] for scene in _scenes(captions)}
    for scene in progress(scenes, total=len(scenes), what="judge, by caption"):
        shown = [videos[k] for k in scenes[scene]]
        examined = [examine(frames, scene) for frames in shown]
        found += examined
        if len(shown) > 1:
            spreads.append(spread.of_scene(scene, shown, [each.start for each in examined]))
    means = average([each.verdict for each in found])
    if means is None:
        return None
    return {**means, **spread.average(spreads), "blocks": [over_block(found, block) for block in blocks]}


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


def _scenes(captions: Sequence[str]) -> list[Scene]:
    """The scenes of those captions that are of the world, in the order they first come."""
    return [scene for caption in dict.fromkeys(captions) if (scene := scene_of(caption))]


def over_block(found: Sequence[Examination], block: range) -> dict[str, float | None]:
    """{velocity, frame_psnr, seen} of all videos over the frames of ``block``; velocity None where there is no step."""
    frames = slice(block.start, block.stop)
    into = slice(max(0, block.start - 1), block.stop - 1)  # step k leads into frame k + 1
    right = np.concatenate([each.right[into] for each in found])
    return {
        "velocity": float(right.mean()) if right.size else None,
        "frame_psnr": float(np.mean([each.psnr[frames].mean() for each in found])),
        "seen": float(np.mean([each.seen[frames].mean() for each in found])),
    }


def _find_object(frames: Frames, video: VideoShape) -> _Object:
    """Whatever stands out from the median colour of each frame, by how much of its own contrast it does."""
    pixels = frames.reshape(video.frames, -1, 3)
    background = np.median(pixels, axis=1).astype(np.float32)[:, None, None, :]
    difference = frames - background
    distance = np.sqrt(np.einsum("fhwc,fhwc->fhw", difference, difference)).astype(np.float64)
    low, high = toy_world.radius_range(video)
    # The smallest triangle fills about twice this many pixels, so this one lies inside every object.
    rank = max(1, round(low**2))
    contrast = np.partition(distance.reshape(video.frames, -1), -rank, axis=1)[:, -rank]
    share = distance / np.maximum(contrast, 1.0)[:, None, None]
    coverage = np.clip((share - NOISE) / (1 - 2 * NOISE), 0.0, 1.0)
    area = coverage.sum(axis=(1, 2))
    usual = np.pi * ((low + high) / 2) ** 2
    seen = (contrast >= MIN_CONTRAST) & (area > AREA_RANGE[0] * usual) & (area < AREA_RANGE[1] * usual)
    centers = _torus_centers(coverage)
    return _Object(difference=difference, coverage=coverage, area=area, centers=centers, seen=seen)


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
def _palette() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    named = {**COLOURS, **BACKGROUNDS}
    return tuple(named), np.array(list(named.values()), dtype=np.float32)


def _nearest_colour(frames: Frames) -> NDArray[np.intp]:
    """Index into the palette of every pixel's nearest entry, [F, H, W]; exact: all numbers stay below 2**24."""
    entries = _palette()[1]
    nearest: NDArray[np.intp] = ((entries**2).sum(axis=1) - 2 * (frames.astype(np.float32) @ entries.T)).argmin(axis=-1)
    return nearest


def _is_mostly(names: NDArray[np.intp], wanted: str) -> bool:
    return bool(names.size) and bool((names == _palette()[0].index(wanted)).mean() > MAJORITY)


def _fit_shape(found: _Object, scene: Scene, video: VideoShape) -> tuple[str | None, float]:
    """The shape that fits the object best (None when none fits), and the scene's shape's best radius in pixels."""
    low, high = toy_world.radius_range(video)
    scale = toy_world.speed(video) / toy_world.speed(shape_match.CANVAS)
    if not found.seen.any():
        return None, low
    difference = found.difference[found.seen]
    colour = difference[found.coverage[found.seen] >= 1].mean(axis=0)
    # Along the object's own colour, not by distance: a blurred edge stays a blurred edge, and noise has no sign.
    share = np.clip(difference @ (colour / (colour @ colour)), 0.0, 1.0).astype(np.float64)
    picture = shape_match.mean_picture(share, found.centers[found.seen], scale)
    fits = shape_match.match_shapes(picture)
    winner = max(fits, key=lambda shape: fits[shape].match)
    radius = float(np.clip(fits[scene.shape].radius * scale, low, high))
    return (winner if fits[winner].match >= shape_match.MIN_MATCH else None), radius


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


def _right_steps(found: _Object, scene: Scene, video: VideoShape) -> NDArray[np.bool_]:
    moves, usable = _steps(found, video)
    true = toy_world.speed(video) * np.array(DIRECTIONS[scene.direction])
    right: NDArray[np.bool_] = usable & (
        np.linalg.norm(moves - true, axis=-1) <= VELOCITY_TOLERANCE * toy_world.speed(video)
    )
    return right


def _fit_start(found: _Object, scene: Scene, video: VideoShape) -> tuple[float, float]:
    """Where the true motion must start to pass closest to the seen centres: their circular mean, the motion undone."""
    size = np.array([video.width, video.height])
    undone = found.centers - toy_world.positions(scene, video=video, start_xy=(0.0, 0.0))
    turns = np.exp(2j * np.pi * undone / size)[found.seen].sum(axis=0)
    x, y = np.angle(turns) * size / (2 * np.pi)
    return float(x), float(y)


def _psnr(frames: Frames, scene: Scene, centers: Floats, radius: float) -> Floats:
    """dB of every frame against the scene rendered at ``centers``, [F]."""
    mask = toy_world.shape_mask(scene.shape, frames.shape[1], frames.shape[2], centers, radius)[..., None]
    background, colour = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[scene.colour])
    error = np.square(frames - (background + mask * (colour - background))).mean(axis=(1, 2, 3))
    psnr: Floats = 10 * np.log10(255.0**2 / np.maximum(error, ROUNDING_MSE))
    return psnr
