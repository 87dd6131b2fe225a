"""Write videos from integer planes, with the colour tags and field orders of television, phones and cameras."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Code points defined by ITU-T H.273, and the weights of red and blue in luma.
MATRICES = {"bt601": 6, "bt709": 1, "bt2020": 9, "fcc": 4, "smpte240m": 7}
WEIGHTS = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}
LIMITED, FULL = 1, 2
UNSPECIFIED = 2


def planes_of(signal: Array, matrix: str, *, full: bool, bits: int) -> list[Array]:
    """Convert R'G'B' [H, W, 3] from 0 to 1 to integer Y, Cb and Cr, as defined by BT.601, BT.709 and BT.2020."""
    of_red, of_blue = WEIGHTS[matrix]
    luma = signal @ np.array([of_red, 1 - of_red - of_blue, of_blue])
    blue = (signal[..., 2] - luma) / (2 * (1 - of_blue))
    red = (signal[..., 0] - luma) / (2 * (1 - of_red))
    top, middle, step = 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 8)
    if full:
        scaled = [luma * top, blue * top + middle, red * top + middle]
    else:
        scaled = [(16 + 219 * luma) * step, (128 + 224 * blue) * step, (128 + 224 * red) * step]
    return [np.clip(np.rint(plane), 0, top) for plane in scaled]


def signal_of(planes: Sequence[Array], matrix: str, *, full: bool, bits: int) -> Array:
    """Convert integer Y, Cb and Cr to R'G'B' [H, W, 3] from 0 to 1. This function is the inverse of planes_of."""
    of_red, of_blue = WEIGHTS[matrix]
    top, middle, step = 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 8)
    if full:
        luma, blue, red = planes[0] / top, (planes[1] - middle) / top, (planes[2] - middle) / top
    else:
        luma = (planes[0] / step - 16) / 219
        blue, red = ((plane / step - 128) / 224 for plane in planes[1:])
    green = luma - (2 * of_blue * (1 - of_blue) * blue + 2 * of_red * (1 - of_red) * red) / (1 - of_red - of_blue)
    return np.clip(np.stack([luma + 2 * (1 - of_red) * red, green, luma + 2 * (1 - of_blue) * blue], axis=-1), 0, 1)


def halved(planes: Sequence[Array]) -> list[Array]:
    """Convert 4:4:4 planes to 4:2:0. The four pixels of each block of 2 x 2 pixels must have the same colour."""
    return [planes[0], planes[1][::2, ::2], planes[2][::2, ::2]]


def write_planes(
    path: Path,
    pictures: Sequence[Sequence[Array]],
    *,
    codec: str,
    pix_fmt: str,
    tags: tuple[int, int, int, int] = (UNSPECIFIED, 0, UNSPECIFIED, UNSPECIFIED),
    fps: int = 8,
    stream: dict[str, str] | None = None,
    fields: Sequence[str | None] = (),
    interlaced: bool = False,
    header_order: int = 0,
) -> Path:
    """Encode integer planes without conversion.

    Args:
        path: The file to write.
        pictures: Integer planes of every frame.
        codec: FFmpeg's name of the encoder.
        pix_fmt: Pixel format.
        tags: Matrix, range, transfer function and primaries.
        fps: Frames per second.
        stream: Options for the encoder.
        fields: Field order of every frame: tff, bff or prog.
        interlaced: Whether the encoder writes interlaced frames.
        header_order: AVFieldOrder to write into the header.
    """
    height, width = pictures[0][0].shape
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=fps, options=stream or {})
        track.height, track.width, track.pix_fmt = height, width, pix_fmt
        context = track.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = tags
        if interlaced:
            context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        if header_order:
            context.field_order = header_order
        for index, planes in enumerate(pictures):
            picture = flagged(picture_of(planes, pix_fmt), fields[index] if fields else None)
            picture.colorspace, picture.color_range, picture.color_trc, picture.color_primaries = tags
            picture.pts, picture.time_base = index, Fraction(1, fps)
            container.mux(track.encode(picture))
        container.mux(track.encode())
    return path


def picture_of(planes: Sequence[Array], pix_fmt: str) -> av.VideoFrame:
    """Build a frame from integer planes without conversion."""
    height, width = planes[0].shape
    picture = av.VideoFrame(width, height, pix_fmt)
    numbers = np.uint8 if picture.format.components[0].bits == 8 else np.uint16
    for place, plane in zip(picture.planes, planes, strict=True):
        rows = np.frombuffer(place, numbers).reshape(plane.shape[0], -1)
        rows[:, : plane.shape[1]] = plane.astype(numbers)
    return picture


def flagged(picture: av.VideoFrame, field: str | None) -> av.VideoFrame:
    """Set the flags of the frame to tff, bff or prog, and return the frame. None keeps the flags of the frame."""
    if field is None:
        return picture
    graph = Graph()
    picture.time_base = Fraction(1, 8)
    graph.link_nodes(
        graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 8)),
        graph.add("setfield", field),
        graph.add("buffersink"),
    ).configure()
    graph.push(picture)
    return graph.vpull()
