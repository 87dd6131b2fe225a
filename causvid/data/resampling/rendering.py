"""Convert frames of any pixel format and colours to uint8 R'G'B' for a BT.709 SDR display, at the size of the clip."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from causvid.data.resampling import hdr
from causvid.data.resampling.colour import Colour, side_data
from causvid.data.resampling.rejection import Rejection

Render = Callable[[VideoFrame], NDArray[np.uint8]]

# For downscaling, FFmpeg widens the bicubic kernel, which prevents aliasing. With the other flags, values are rounded
# in the same way on every CPU.
_SCALE_FLAGS = "bicubic+accurate_rnd+bitexact+full_chroma_int"
_DEEP = {"ycbcr": "yuv444p16le", "gray": "gray16le", "rgb": "gbrp16le"}
# Maps FFmpeg's name of a matrix to the weights of red and blue in luma (ITU-T H.273, table 4).
_LUMA = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}


def renderer(
    picture: VideoFrame, colour: Colour, *, cut: tuple[int, int, int, int], size: tuple[int, int], time_base: Fraction
) -> Render:
    """Return a function that crops, scales and converts frames with the layout of ``picture`` to uint8 [H, W, 3].

    FFmpeg's scale filter converts the colours of ordinary SDR. For HDR, wide gamut and limited-range gray, the filter
    only scales the frames, and this module converts the colours, for two reasons. The filter's conversion to linear
    light uses a coarse table, with errors of up to 40 of 255 levels at the edge of BT.709. The filter also ignores
    limited range in gray.

    Args:
        picture: The first frame, which stores the peak luminance of HDR.
        colour: The colours of the frames.
        cut: The part of the stored frame to use: width, height, x and y in pixels.
        size: The width and height in pixels to which this part is scaled.
        time_base: The unit of the frames' timestamps, in seconds.
    """
    matrix, span = colour.matrix, "full" if colour.full else "limited"
    read = f":in_color_matrix={matrix}:in_range={span}" if colour.kind == "ycbcr" else ""
    if colour.conversion is None and (colour.full or colour.kind == "ycbcr"):
        # gbrp gives the same values as rgb24 in half the time, because the filter computes on planes.
        graph = _graph(picture, cut, size, time_base, read, "gbrp")
        return lambda shown: np.asarray(_through(graph, shown).to_ndarray(), dtype=np.uint8)
    bits, peak = picture.format.components[0].bits, peak_luminance(picture, colour)
    if bits > 16:
        raise Rejection(
            "unsupported_colour", f"the pixel format {picture.format.name} is floating point, which is not supported"
        )
    # The filter does not change matrix and range, so that its 16-bit values are the source's values times a power of 2.
    keep = f"{read}:out_color_matrix={matrix}:out_range={span}" if read else ""
    graph = _graph(picture, cut, size, time_base, keep, _DEEP[colour.kind])

    def convert(shown: VideoFrame) -> NDArray[np.uint8]:
        signal = _signal(np.asarray(_through(graph, shown).to_ndarray(), dtype=np.uint16), colour, bits)
        if colour.conversion is not None:
            signal = hdr.to_bt709(signal, transfer=colour.transfer, primaries=colour.primaries, peak=peak)
        return np.rint(255 * signal).astype(np.uint8)

    return convert


def peak_luminance(picture: VideoFrame, colour: Colour) -> float:
    """Return the luminance of the brightest highlights in cd/m2.

    For PQ, this luminance is MaxCLL, or else the peak of the mastering display. If both values are missing or
    impossible, the luminance is 10,000 cd/m2, the maximum of PQ. HLG is rendered for a display of 1,000 cd/m2.
    """
    if colour.transfer != "pq":
        return hdr.HLG_PEAK
    candidates, parts = [], side_data(picture)
    if Type.CONTENT_LIGHT_LEVEL in parts:  # AVContentLightMetadata: MaxCLL, MaxFALL
        candidates.append(float(struct.unpack_from("=I", parts[Type.CONTENT_LIGHT_LEVEL])[0]))
    if Type.MASTERING_DISPLAY_METADATA in parts:  # AVMasteringDisplayMetadata: max_luminance at byte 72
        numbers = struct.unpack_from("=72x2i", parts[Type.MASTERING_DISPLAY_METADATA])
        candidates.append(numbers[0] / numbers[1] if numbers[1] else 0.0)
    return next((peak for peak in candidates if hdr.SDR_WHITE <= peak <= hdr.PQ_PEAK), hdr.PQ_PEAK)


def _graph(
    picture: VideoFrame,
    cut: tuple[int, int, int, int],
    size: tuple[int, int],
    time_base: Fraction,
    colours: str,
    pixels: str,
) -> Graph:
    graph = Graph()
    graph.threads = 1
    width, height, x, y = cut
    graph.link_nodes(
        graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=time_base),
        graph.add("crop", f"{width}:{height}:{x}:{y}:exact=1"),
        graph.add("scale", f"{size[0]}:{size[1]}:flags={_SCALE_FLAGS}{colours}"),
        graph.add("format", pixels),
        graph.add("buffersink"),
    ).configure()
    return graph


def _through(graph: Graph, picture: VideoFrame) -> VideoFrame:
    graph.push(picture)
    return graph.vpull()


def _signal(planes: NDArray[np.uint16], colour: Colour, bits: int) -> NDArray[np.float64]:
    """Convert 16-bit planes, scaled from ``bits`` bits, to R'G'B' [H, W, 3] from 0 to 1 (BT.2100, table 9)."""
    step = float(1 << (16 - bits))  # difference of consecutive values of the source, in 16-bit values
    low, span, colour_span = (0.0, ((1 << bits) - 1) * step, ((1 << bits) - 1) * step)
    if not colour.full:
        low, span, colour_span = 16 * 256.0, 219 * 256.0, 224 * 256.0
    if colour.kind != "ycbcr":
        light = (planes.astype(np.float64).reshape(*planes.shape[:2], -1) - low) / span
        return np.clip(np.broadcast_to(light, (*planes.shape[:2], 3)), 0, 1)
    luma = (planes[..., 0] - low) / span
    blue_difference, red_difference = ((planes[..., part] - 32768.0) / colour_span for part in (1, 2))
    of_red, of_blue = _LUMA[colour.matrix]
    red, blue = luma + 2 * (1 - of_red) * red_difference, luma + 2 * (1 - of_blue) * blue_difference
    green = (luma - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 1)
