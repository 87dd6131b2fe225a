"""Enlarge the frames of a video without interpolation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from causvid.runtime.shapes import VideoShape

Frames = NDArray[np.uint8]
LARGEST = 16384  # largest height and width that x264 encodes


def require_scale(scale: int, shape: VideoShape) -> None:
    """Raise ValueError unless frames of the size ``shape`` can be enlarged by the factor ``scale``."""
    if scale < 1:
        raise ValueError(f"--scale is {scale}; it must be at least 1, the size of the model's frames")
    for name, side in (("height", shape.height), ("width", shape.width)):
        if side * scale > LARGEST:
            raise ValueError(
                f"--scale is {scale}; it enlarges the {name} of {side} pixels to {side * scale}, but x264 encodes at "
                f"most {LARGEST}: choose at most {LARGEST // max(shape.height, shape.width)}"
            )


def enlarged(chunks: Iterator[Frames], scale: int) -> Iterator[Frames]:
    """Repeat each pixel in ``scale`` rows and ``scale`` columns, frame by frame to save memory.

    Args:
        chunks: uint8 chunks [f, H, W, 3].
        scale: The factor; 1 = the chunks as they are.

    Yields:
        uint8 chunks [f, scale H, scale W, 3].
    """
    for chunk in chunks:
        if scale == 1:
            yield chunk
        else:
            for frame in chunk:
                yield frame.repeat(scale, axis=0).repeat(scale, axis=1)[None]
