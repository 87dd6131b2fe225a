"""The built-in captioned world: one moving shape on a solid background, small enough to be learnt on two CPU cores.

Coordinates are (x, y) in pixels, x to the right and y down; the centre of the pixel in row i and column j is (j, i).
The plane is a torus: what leaves on one side comes back on the other. Sizes and speed are those of a 32-pixel video and
scale with the smaller side of others.
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

# RGB. Each colour differs from each background in brightness too: H.264's 4:2:0 keeps colour at half resolution only.
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
# In radii. Together they make the three shapes about equally large, so that size does not tell them apart.
_SQUARE_HALF_SIDE = 0.9
_TRIANGLE_HALF_BASE = 1.2
_TRIANGLE_HEIGHT = 2.4


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a caption says: keys of SHAPES, COLOURS, DIRECTIONS and BACKGROUNDS."""

    shape: str
    colour: str
    direction: str
    background: str

    @property
    def caption(self) -> str:
        """The one sentence that describes the scene; ``parse`` turns it back."""
        return f"a {self.colour} {self.shape} moves {self.direction} over a {self.background} background"


@cache
def _scenes() -> dict[str, Scene]:
    scenes = [
        Scene(shape=shape, colour=colour, direction=direction, background=background)
        for shape, colour, direction, background in product(SHAPES, COLOURS, DIRECTIONS, BACKGROUNDS)
    ]
    return {scene.caption: scene for scene in scenes}


def captions() -> list[str]:
    """All 288 captions, sorted."""
    return sorted(_scenes())


def parse(caption: str) -> Scene:
    """The scene of a caption. Raises ValueError when the caption is not of this world."""
    try:
        return _scenes()[caption]
    except KeyError:
        raise ValueError(f"{caption!r} is no caption of the toy world; they read like {captions()[0]!r}") from None


def speed(video: VideoShape) -> float:
    """Pixels per frame that every shape moves."""
    return _SPEED * min(video.height, video.width) / _REFERENCE_SIDE


def radius_range(video: VideoShape) -> tuple[float, float]:
    """The smallest and largest radius of a shape, in pixels."""
    scale = min(video.height, video.width) / _REFERENCE_SIDE
    return _RADII[0] * scale, _RADII[1] * scale


def positions(scene: Scene, *, video: VideoShape, start_xy: tuple[float, float]) -> NDArray[np.float64]:
    """Centre of the shape in every frame, [F, 2] as (x, y) in pixels, on the torus."""
    steps = np.arange(video.frames)[:, None] * speed(video) * np.array(DIRECTIONS[scene.direction])
    wrapped: NDArray[np.float64] = (np.array(start_xy) + steps) % np.array([video.width, video.height])
    return wrapped


def shape_mask(shape: str, height: int, width: int, center_xy: ArrayLike, radius: float) -> NDArray[np.float64]:
    """Share of every pixel that the shape covers, in [0, 1], edges anti-aliased over one pixel, on the torus.

    center_xy [..., 2] in pixels (the shape's centre of mass), radius in pixels; returns [..., height, width].
    """
    center = np.asarray(center_xy, dtype=np.float64)[..., None, None]
    # Offsets of every pixel by the shortest way round the torus.
    dx = (np.arange(width) - center[..., 0, :, :] + width / 2) % width - width / 2
    dy = (np.arange(height)[:, None] - center[..., 1, :, :] + height / 2) % height - height / 2
    if shape == "circle":
        outside = np.hypot(dx, dy) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(dx), np.abs(dy)) - _SQUARE_HALF_SIDE * radius
    elif shape == "triangle":
        half_base, tall = _TRIANGLE_HALF_BASE * radius, _TRIANGLE_HEIGHT * radius
        below_tip = dy + tall * 2 / 3  # the centre of mass lies at two thirds of the height
        sides = (np.abs(dx) * tall - below_tip * half_base) / np.hypot(tall, half_base)
        outside = np.maximum(below_tip - tall, sides)
    else:
        raise ValueError(f"shape is {shape!r}; the toy world has {', '.join(SHAPES)}")
    covered: NDArray[np.float64] = np.clip(0.5 - outside, 0.0, 1.0)
    return covered


def render(scene: Scene, *, video: VideoShape, start_xy: tuple[float, float], radius: float) -> NDArray[np.uint8]:
    """The scene as uint8 [F, H, W, 3] RGB, its shape's centre at ``start_xy`` in the first frame; radius in pixels."""
    centers = positions(scene, video=video, start_xy=start_xy)
    covered = shape_mask(scene.shape, video.height, video.width, centers, radius)[..., None]
    background, colour = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[scene.colour])
    frames: NDArray[np.uint8] = np.rint(background + covered * (colour - background)).astype(np.uint8)
    return frames


def clip_captions(known: Sequence[str], count: int, *, seed: int) -> list[str]:
    """Captions of training clips 0 to count - 1: all of ``known`` once, newly shuffled, before one comes again.

    Raises ValueError for a caption that is not of this world.
    """
    distinct = sorted({parse(caption).caption for caption in known})
    turns = range(-(-count // len(distinct)))
    shuffled = [sorted(distinct, key=lambda caption: derive_seed(seed, "toy_world", turn, caption)) for turn in turns]
    return [caption for turn in shuffled for caption in turn][:count]


def clip_frames(caption: str, index: int, *, video: VideoShape, seed: int) -> NDArray[np.uint8]:
    """Training clip ``index``, showing ``caption``: uint8 [F, H, W, 3], start and radius drawn from (seed, index)."""
    draw = np.random.Generator(np.random.PCG64(derive_seed(seed, "toy_world", index)))
    start_xy = (draw.uniform(0, video.width), draw.uniform(0, video.height))
    return render(parse(caption), video=video, start_xy=start_xy, radius=draw.uniform(*radius_range(video)))
