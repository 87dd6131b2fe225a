"""Known damage to real clips: what each measure says of it is the floor that models are read against.

Every function takes and returns one video, uint8 [F, H, W, 3], and a strength that 0 makes harmless; what is drawn
comes from the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Corruption = Callable[[Frames, float, np.random.Generator], Frames]


def frozen(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """Everything stands still for the last ``strength`` of the frames, a share in [0, 1]."""
    moving = max(1, round(len(frames) * (1 - strength)))
    return np.concatenate([frames[:moving], np.repeat(frames[moving - 1 : moving], len(frames) - moving, axis=0)])


def blurred(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """Gaussian blur, the plane a torus; ``strength`` is its standard deviation as a share of the smaller side."""
    found = np.fft.rfft2(frames, axes=(1, 2))
    height, width = frames.shape[1:3]
    deviation = strength * min(height, width)
    across, along = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    kept = np.exp(-2 * np.square(np.pi * deviation) * (across**2 + along**2))[..., None]
    return _to_uint8(np.fft.irfft2(found * kept, s=(height, width), axes=(1, 2)))


def noise(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """Gaussian noise, new in every frame; ``strength`` is its standard deviation as a share of full brightness."""
    return _to_uint8(frames + generator.normal(0.0, 255 * strength, frames.shape))


def vanished(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """With probability ``strength`` every frame shows nothing but its median colour."""
    if generator.random() >= strength:
        return frames
    background = np.median(frames, axis=(1, 2), keepdims=True)
    return _to_uint8(np.broadcast_to(background, frames.shape))


# Each with the strength at which hardly anything is left of what it hurts.
FLOORS: Mapping[str, tuple[Corruption, float]] = {
    "frozen": (frozen, 1.0),
    "blurred": (blurred, 0.1),
    "noise": (noise, 0.2),
    "vanished": (vanished, 1.0),
}


def _to_uint8(values: NDArray[np.float64]) -> Frames:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
