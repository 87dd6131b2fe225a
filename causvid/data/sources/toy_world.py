"""The toy world: captioned videos of one moving shape on a solid background, which two CPU cores can learn.

Coordinates are (x, y) in pixels, x to the right and y down; the centre of the pixel in row i and column j is (j, i).
The plane is a torus: a shape that leaves on one side enters on the opposite side. Sizes and speeds are given for videos
of 32 x 32 pixels, and are proportional to the smaller side of the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from causvid.runtime.seeding import derive_seed
from causvid.runtime.shapes import VideoShape

# RGB values. Each colour also differs from each background in brightness, because H.264's 4:2:0 halves the resolution
# of colour.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 20, 30),
    "green": (20, 240, 30),
    "blue": (40, 80, 255),
    "yellow": (255, 225, 0),
    "magenta": (240, 20, 220),
    "cyan": (0, 230, 250),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "navy": (0, 0, 96),
    "gray": (128, 128, 128),
    "white": (245, 245, 245),
}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")

_REFERENCE_SIDE = 32  # pixels
_SPEED = 1.0  # pixels per frame at the reference side
_RADII = (5.5, 6.5)  # pixels at the reference side
# Multiples of the radius. With these sizes the three shapes have similar areas, so that area does not reveal the shape.
_SQUARE_HALF_SIDE = 0.9
_TRIANGLE_HALF_BASE = 1.2
_TRIANGLE_HEIGHT = 2.4


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The scene that a caption describes.

    Attributes:
        shape: One of SHAPES.
        colour: Key of COLOURS.
        direction: Key of DIRECTIONS.
        background: Key of BACKGROUNDS.
    """

    shape: str
    colour: str
    direction: str
    background: str

    @property
    def caption(self) -> str:
        """The sentence that describes the scene. ``parse`` returns the scene for this sentence."""
        return f"a {self.colour} {self.shape} moves {self.direction} over a {self.background} background"


@cache
def _scenes() -> dict[str, Scene]:
    scenes = [
        Scene(shape=shape, colour=colour, direction=direction, background=background)
        for shape, colour, direction, background in product(SHAPES, COLOURS, DIRECTIONS, BACKGROUNDS)
    ]
    return {scene.caption: scene for scene in scenes}


def captions() -> list[str]:
    """Return all 288 captions, sorted."""
    return sorted(_scenes())


def parse(caption: str) -> Scene:
    """Return the scene that a caption describes. Raises ValueError if there is no such scene in the toy world."""
    try:
        return _scenes()[caption]
    except KeyError:
        raise ValueError(f"{caption!r} is not a caption of the toy world; an example is {captions()[0]!r}") from None


def speed(video: VideoShape) -> float:
    """Return the speed of every shape in pixels per frame."""
    return _SPEED * min(video.height, video.width) / _REFERENCE_SIDE


def radius_range(video: VideoShape) -> tuple[float, float]:
    """Return the smallest and the largest radius of a shape in pixels."""
    scale = min(video.height, video.width) / _REFERENCE_SIDE
    return _RADII[0] * scale, _RADII[1] * scale


def positions(scene: Scene, *, video: VideoShape, start_xy: tuple[float, float]) -> NDArray[np.float64]:
    """Return the centre of the shape in every frame: (x, y) in pixels on the torus, [F, 2]."""
    steps = np.arange(video.frames)[:, None] * speed(video) * np.array(DIRECTIONS[scene.direction])
    wrapped: NDArray[np.float64] = (np.array(start_xy) + steps) % np.array([video.width, video.height])
    return wrapped


def shape_mask(shape: str, height: int, width: int, center_xy: ArrayLike, radius: float) -> NDArray[np.float64]:
    """Rasterise a shape on the torus, with edges that are anti-aliased over one pixel.

    Args:
        shape: One of SHAPES.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        center_xy: Centre of mass in pixels, [..., 2].
        radius: Radius in pixels.

    Returns:
        The covered share of every pixel, from 0 to 1, [..., height, width].
    """
    center = np.asarray(center_xy, dtype=np.float64)[..., None, None]
    # Offset of every pixel from the centre, along the shortest path on the torus.
    dx = (np.arange(width) - center[..., 0, :, :] + width / 2) % width - width / 2
    dy = (np.arange(height)[:, None] - center[..., 1, :, :] + height / 2) % height - height / 2
    if shape == "circle":
        outside = np.hypot(dx, dy) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(dx), np.abs(dy)) - _SQUARE_HALF_SIDE * radius
    elif shape == "triangle":
        half_base, tall = _TRIANGLE_HALF_BASE * radius, _TRIANGLE_HEIGHT * radius
        below_tip = dy + tall * 2 / 3  # the centre of mass is at two thirds of the height
        sides = (np.abs(dx) * tall - below_tip * half_base) / np.hypot(tall, half_base)
        outside = np.maximum(below_tip - tall, sides)
    else:
        raise ValueError(f"shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
    covered: NDArray[np.float64] = np.clip(0.5 - outside, 0.0, 1.0)
    return covered


def render(scene: Scene, *, video: VideoShape, start_xy: tuple[float, float], radius: float) -> NDArray[np.uint8]:
    """Render a scene.

    Args:
        scene: The scene.
        video: Size and number of frames.
        start_xy: Centre of the shape in the first frame, in pixels.
        radius: Radius of the shape in pixels.

    Returns:
        RGB frames, uint8 [F, H, W, 3].
    """
    centers = positions(scene, video=video, start_xy=start_xy)
    covered = shape_mask(scene.shape, video.height, video.width, centers, radius)[..., None]
    background, colour = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[scene.colour])
    frames: NDArray[np.uint8] = np.rint(background + covered * (colour - background)).astype(np.uint8)
    return frames


def clip_captions(known: Sequence[str], count: int, *, seed: int) -> list[str]:
    """Return the captions of the training clips 0 to ``count`` - 1.

    Every caption of ``known`` appears once before a caption appears again; each round has another random order.

    Raises:
        ValueError: A caption does not describe a scene of the toy world.
    """
    distinct = sorted({parse(caption).caption for caption in known})
    rounds = range(-(-count // len(distinct)))
    shuffled = [sorted(distinct, key=lambda caption: derive_seed(seed, "toy_world", turn, caption)) for turn in rounds]
    return [caption for captions_of_round in shuffled for caption in captions_of_round][:count]


def clip_frames(caption: str, index: int, *, video: VideoShape, seed: int) -> NDArray[np.uint8]:
    """Return training clip ``index``, uint8 [F, H, W, 3]. The start and the radius depend on (seed, index)."""
    draw = np.random.Generator(np.random.PCG64(derive_seed(seed, "toy_world", index)))
    start_xy = (draw.uniform(0, video.width), draw.uniform(0, video.height))
    return render(parse(caption), video=video, start_xy=start_xy, radius=draw.uniform(*radius_range(video)))
