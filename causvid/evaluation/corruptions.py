"""Corrupt real clips. The scores of corrupted clips are the floors with which the scores of models are compared.

The arguments of every function are a video, uint8 [F, H, W, 3], a strength, and a generator of random numbers. The
function returns the corrupted video. With a strength of 0, the video is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Corruption = Callable[[Frames, float, np.random.Generator], Frames]


def frozen(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """Repeat one frame to the end of the video; ``strength`` in [0, 1] is the share of replaced frames."""
    moving = max(1, round(len(frames) * (1 - strength)))
    return np.concatenate([frames[:moving], np.repeat(frames[moving - 1 : moving], len(frames) - moving, axis=0)])


def blurred(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """Blur with a Gaussian on the torus; ``strength`` is its standard deviation as a share of the smaller side."""
    spectrum = np.fft.rfft2(frames, axes=(1, 2))
    height, width = frames.shape[1:3]
    deviation = strength * min(height, width)
    across, along = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    kept = np.exp(-2 * np.square(np.pi * deviation) * (across**2 + along**2))[..., None]
    return _to_uint8(np.fft.irfft2(spectrum * kept, s=(height, width), axes=(1, 2)))


def noise(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """Add independent Gaussian noise; ``strength`` is its standard deviation as a share of full brightness."""
    return _to_uint8(frames + generator.normal(0.0, 255 * strength, frames.shape))


def vanished(frames: Frames, strength: float, generator: np.random.Generator) -> Frames:
    """With probability ``strength``, replace every frame by its median colour, the background."""
    if generator.random() >= strength:
        return frames
    background = np.median(frames, axis=(1, 2), keepdims=True)
    return _to_uint8(np.broadcast_to(background, frames.shape))


# Each corruption and a strength that destroys almost all of the property that the corruption affects.
FLOORS: Mapping[str, tuple[Corruption, float]] = {
    "frozen": (frozen, 1.0),
    "blurred": (blurred, 0.1),
    "noise": (noise, 0.2),
    "vanished": (vanished, 1.0),
}


def _to_uint8(values: NDArray[np.float64]) -> Frames:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
