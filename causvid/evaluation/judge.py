"""Judge videos of the toy world: compare a video with its caption by rules, without trained weights.

Shapes: F frames, H and W in pixels. The background of a frame is the median colour of the frame. The object of a frame
consists of the pixels that differ from the background. The coverage of a pixel is the share of the pixel that the
object fills. The expected sizes and speeds of the object are those of ``data.sources.toy_world``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

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

# Smallest RGB distance between object and background; for the colours of the toy world, this distance is at least 160.
MIN_CONTRAST = 60.0
# Share of the contrast that is cut off at both ends of the coverage. With a share of 0.2, the measured position of the
# object would move in steps of two pixels, because H.264's 4:2:0 halves the resolution of colour.
NOISE = 0.1
# Smallest and largest area of an object, divided by the mean area in the toy world. A frame whose object has another
# area does not show one object.
AREA_RANGE = (1 / 3, 3.0)
MAJORITY = 0.5  # share of the frames, pixels or steps that must agree
MIN_SPEED = 0.3  # smallest speed of a moving object, as a share of the true speed
VELOCITY_TOLERANCE = 0.5  # largest velocity error of a correct step, as a share of the true speed
ROUNDING_MSE = 1 / 12  # mean squared error of rounding to uint8


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Scores of one video.

    Attributes:
        colour: Whether the object has the colour of the caption.
        background: Whether the background has the colour of the caption.
        shape: Whether the object has the shape of the caption.
        motion: Whether the object moves in the direction of the caption.
        velocity: Share of the steps between frames with a velocity error of at most half of the true speed.
        seen: Share of the frames that show one object.
        area_cv: Size flicker: standard deviation of the object's area divided by the mean area (0 = constant size).
            None if no frame shows an object.
        frame_psnr: PSNR in dB between a frame and the ideal rendering of the caption at the measured position, averaged
            over the frames.
        temporal_psnr: PSNR in dB between a frame and the ideal rendering of the caption at the position of the true
            motion, averaged over the frames. The start of the true motion is fitted to the frames that show the object.
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
    """A verdict and the values per frame from which it was computed.

    Attributes:
        verdict: The verdict.
        seen: Whether each frame shows one object, [F].
        psnr: The PSNR of each frame in dB, [F]. ``frame_psnr`` is the mean of these values.
        right: Whether the step into frame 1, 2, ... has the true velocity, [F - 1].
        start: Centre (x, y) of the object in the first frame; None if the first frame shows no object.
    """

    verdict: Verdict
    seen: NDArray[np.bool_]
    psnr: Floats
    right: NDArray[np.bool_]
    start: Floats | None


@dataclass(frozen=True, kw_only=True)
class _Object:
    """Measurements of the object in every frame.

    Attributes:
        difference: Difference from the background, [F, H, W, 3].
        coverage: Coverage of every pixel in [0, 1], [F, H, W].
        area: Area in pixels, [F].
        centers: Centre of mass (x, y) in pixels, [F, 2].
        seen: Whether the frame shows one object, [F].
    """

    difference: NDArray[np.float32]
    coverage: Floats
    area: Floats
    centers: Floats
    seen: NDArray[np.bool_]


def judge(frames: Frames, caption: str) -> Verdict | None:
    """Return the verdict on ``frames``, uint8 [F, H, W, 3] RGB; None if ``caption`` does not describe the toy world."""
    scene = scene_of(caption)
    return examine(frames, scene).verdict if scene else None


def scene_of(caption: str) -> Scene | None:
    """Return the scene that ``caption`` describes; None if ``caption`` does not describe the toy world."""
    try:
        return toy_world.parse(caption)
    except ValueError:
        return None


def examine(frames: Frames, scene: Scene) -> Examination:
    """Compare ``frames``, uint8 [F, H, W, 3] RGB, with the scene that they should show."""
    count, height, width, _ = frames.shape
    # Speeds of the toy world are in pixels per frame, so that the verdict does not depend on the frame rate.
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


class Examined(NamedTuple):
    """Examinations of a set of videos, grouped by scene, and the spread of the videos of each scene."""

    examinations: list[Examination]
    spreads: list[spread.Spread]


def judge_videos(videos: Sequence[Frames], captions: Sequence[str], blocks: Sequence[range]) -> Averages | None:
    """Judge a set of videos and return the averages.

    Args:
        videos: Videos, each uint8 [F, H, W, 3] RGB.
        captions: One caption per video. Videos whose caption does not describe the toy world are ignored.
        blocks: Frames of each block of a clip.

    Returns:
        The result of ``averages``.

    Raises:
        ValueError: The numbers of captions and videos differ, or a caption is not a string.
    """
    return averages(examine_videos(videos, captions), blocks)


def examine_videos(videos: Sequence[Frames], captions: Sequence[str]) -> Examined:
    """Examine a set of videos. Arguments and errors are those of ``judge_videos``."""
    captions = prompt_list(captions, "captions")
    if len(captions) != len(videos):
        raise ValueError(f"captions has {len(captions)} entries, videos {len(videos)}; give one caption per video")
    found = Examined(examinations=[], spreads=[])
    scenes = {scene: [k for k, text in enumerate(captions) if text == scene.caption] for scene in _scenes(captions)}
    for scene in progress(scenes, total=len(scenes), what="judge, by caption"):
        shown = [videos[k] for k in scenes[scene]]
        examined = [examine(frames, scene) for frames in shown]
        found.examinations.extend(examined)
        if len(shown) > 1:
            found.spreads.append(spread.of_scene(scene, shown, [each.start for each in examined]))
    return found


def averages(examined: Examined, blocks: Sequence[range]) -> Averages | None:
    """Average the examinations of a set of videos.

    Args:
        examined: The examinations.
        blocks: Frames of each block of a clip.

    Returns:
        None if there is no examination. Otherwise, a dictionary with the values of ``average``, with ``start_spread``
        and ``sample_spread`` of ``causvid.evaluation.spread`` (None if no two videos have the same caption), and with
        ``blocks``, a list with the result of ``over_block`` for each block.
    """
    examinations, spreads = examined
    means = average([each.verdict for each in examinations])
    if means is None:
        return None
    return {**means, **spread.average(spreads), "blocks": [over_block(examinations, block) for block in blocks]}


def average(verdicts: Sequence[Verdict | None]) -> dict[str, float | None] | None:
    """Return the mean of every field over the verdicts that are not None, and the number ``n`` of these verdicts.

    ``area_cv`` is averaged over the videos that show an object, and is None if no video shows an object. The result is
    None if all verdicts are None.
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
    """Return the different scenes that the captions describe, in the order of their first captions."""
    return [scene for caption in dict.fromkeys(captions) if (scene := scene_of(caption))]


def over_block(examinations: Sequence[Examination], block: range) -> dict[str, float | None]:
    """Return the means of velocity, frame_psnr and seen over the frames of ``block`` of all videos.

    A step belongs to the block of its later frame. ``velocity`` is None if no step belongs to the block.
    """
    frames = slice(block.start, block.stop)
    into = slice(max(0, block.start - 1), block.stop - 1)  # step k leads into frame k + 1
    right = np.concatenate([each.right[into] for each in examinations])
    return {
        "velocity": float(right.mean()) if right.size else None,
        "frame_psnr": float(np.mean([each.psnr[frames].mean() for each in examinations])),
        "seen": float(np.mean([each.seen[frames].mean() for each in examinations])),
    }


def _find_object(frames: Frames, video: VideoShape) -> _Object:
    """Find the object in every frame. The coverage of a pixel is its contrast divided by the contrast of the object."""
    pixels = frames.reshape(video.frames, -1, 3)
    background = np.median(pixels, axis=1).astype(np.float32)[:, None, None, :]
    difference = frames - background
    distance = np.sqrt(np.einsum("fhwc,fhwc->fhw", difference, difference)).astype(np.float64)
    low, high = toy_world.radius_range(video)
    # The smallest triangle fills about 2 ``rank`` pixels. The pixel with the ``rank``-th largest contrast is therefore
    # inside every object.
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
    """Return the centre of mass (x, y) of every frame on the torus, [F, 2], for ``weight`` [F, H, W].

    A frame without weight has the centre (0, 0).
    """
    axes = []
    for axis in (1, 2):  # the sum over rows is a function of x, the sum over columns a function of y
        profile = weight.sum(axis=axis)
        size = profile.shape[1]
        places = np.arange(size)
        rough = np.angle(profile @ np.exp(2j * np.pi * places / size)) * size / (2 * np.pi)
        # For an asymmetric shape, the circular mean differs from the centre of mass, but unwraps the offsets correctly.
        offset = (places - rough[:, None] + size / 2) % size - size / 2
        axes.append((rough + (profile * offset).sum(axis=1) / np.maximum(profile.sum(axis=1), 1e-9)) % size)
    return np.stack(axes, axis=-1)


@cache
def _palette() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    named = {**COLOURS, **BACKGROUNDS}
    return tuple(named), np.array(list(named.values()), dtype=np.float32)


def _nearest_colour(frames: Frames) -> NDArray[np.intp]:
    """Return the index of the nearest palette entry for every pixel, [F, H, W].

    The comparison in float32 is exact, because all numbers are integers below 2**24.
    """
    entries = _palette()[1]
    nearest: NDArray[np.intp] = ((entries**2).sum(axis=1) - 2 * (frames.astype(np.float32) @ entries.T)).argmin(axis=-1)
    return nearest


def _is_mostly(names: NDArray[np.intp], wanted: str) -> bool:
    return bool(names.size) and bool((names == _palette()[0].index(wanted)).mean() > MAJORITY)


def _fit_shape(found: _Object, scene: Scene, video: VideoShape) -> tuple[str | None, float]:
    """Return the shape that matches the object best, and the best radius in pixels of the shape in ``scene``.

    The shape is None if the match of the best template is below ``shape_match.MIN_MATCH``.
    """
    low, high = toy_world.radius_range(video)
    scale = toy_world.speed(video) / toy_world.speed(shape_match.CANVAS)
    if not found.seen.any():
        return None, low
    difference = found.difference[found.seen]
    colour = difference[found.coverage[found.seen] >= 1].mean(axis=0)
    # The projection onto the object's colour has two advantages over the coverage: no threshold sharpens blurred edges,
    # and noise in other directions of the colour space is ignored.
    share = np.clip(difference @ (colour / (colour @ colour)), 0.0, 1.0).astype(np.float64)
    image = shape_match.mean_picture(share, found.centers[found.seen], scale)
    fits = shape_match.match_shapes(image)
    winner = max(fits, key=lambda shape: fits[shape].match)
    radius = float(np.clip(fits[scene.shape].radius * scale, low, high))
    return (winner if fits[winner].match >= shape_match.MIN_MATCH else None), radius


def _steps(found: _Object, video: VideoShape) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the shortest displacements between consecutive frames, [F - 1, 2], and whether both frames are seen."""
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
    """Return the start (x, y) of the true motion that fits the object's centres best, over the frames with an object.

    The true motion is subtracted from the centres, and the start is the circular mean of the differences.
    """
    size = np.array([video.width, video.height])
    undone = found.centers - toy_world.positions(scene, video=video, start_xy=(0.0, 0.0))
    turns = np.exp(2j * np.pi * undone / size)[found.seen].sum(axis=0)
    x, y = np.angle(turns) * size / (2 * np.pi)
    return float(x), float(y)


def _psnr(frames: Frames, scene: Scene, centers: Floats, radius: float) -> Floats:
    """Return the PSNR in dB of every frame, [F], with respect to the scene rendered at ``centers``."""
    mask = toy_world.shape_mask(scene.shape, frames.shape[1], frames.shape[2], centers, radius)[..., None]
    background, colour = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[scene.colour])
    error = np.square(frames - (background + mask * (colour - background))).mean(axis=(1, 2, 3))
    psnr: Floats = 10 * np.log10(255.0**2 / np.maximum(error, ROUNDING_MSE))
    return psnr
