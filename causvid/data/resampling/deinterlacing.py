"""Deinterlace frames whose odd and even rows were recorded at different times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame

from causvid.data.resampling.rejection import Rejection

Timed = tuple[Fraction, Fraction, VideoFrame]

# Values of AVFieldOrder in the header of a stream: those for "top field first", and those for "bottom field first".
_TOP_FIRST, _BOTTOM_FIRST = {2, 5}, {3, 4}


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A decoded frame, after deinterlacing.

    Attributes:
        picture: The frame. It is progressive if ``Deinterlacer.replace`` is set; otherwise it may be interlaced.
        interlaced: Whether the frame was interlaced in the source.
        rotation: Counterclockwise rotation of the frame for display, in degrees.
    """

    picture: VideoFrame
    interlaced: bool
    rotation: int


def is_interlaced(picture: VideoFrame, field_order: int) -> bool:
    """Return whether a frame or the header of its stream is tagged as interlaced."""
    return bool(picture.interlaced_frame) or field_order in _TOP_FIRST | _BOTTOM_FIRST


class Deinterlacer:
    """Replaces each interlaced frame by a progressive one at the time of its first field, with FFmpeg's bwdif filter.

    Only tags determine whether a frame is interlaced. Telecined film and progressive frames with a wrong tag therefore
    count as interlaced. Some codecs have no flags for frames: the tag in the header of the stream is used until a frame
    has an interlaced flag.

    Args:
        codec: FFmpeg's name of the stream's codec.
        field_order: FFmpeg's AVFieldOrder in the stream's header, read before the first frame was decoded.
        time_base: The unit of the frames' timestamps, in seconds.
        replace: Whether to replace interlaced frames. If False, interlaced frames are only marked as interlaced.
    """

    def __init__(self, *, codec: str, field_order: int, time_base: Fraction, replace: bool) -> None:
        self.codec, self.field_order, self.time_base, self.replace = codec, field_order, time_base, replace
        self.flagged = False
        self.layout: tuple[int, int, str] | None = None
        self.waiting: deque[tuple[Fraction, Fraction, VideoFrame, bool]] = deque()

    def __call__(self, pictures: Iterable[Timed]) -> Iterator[tuple[Fraction, Fraction, Shown]]:
        """Yield each of ``pictures`` after deinterlacing, with its times. Progressive frames are yielded unchanged.

        Raises:
            Rejection: A frame is a single field, is too small, or has another size or pixel format than earlier frames.
        """
        graph: Graph | None = None
        for begins, ends, picture in pictures:
            interlaced = self._interlaced(picture)
            if graph is None and interlaced and self.replace:
                graph = self._graph(picture)
            if graph is None:
                yield begins, ends, Shown(picture=picture, interlaced=interlaced, rotation=picture.rotation)
                continue
            if layout_of(picture) != self.layout:
                raise changed(self.layout, picture)
            self.waiting.append((begins, ends, picture, interlaced))
            graph.push(picture)
            yield from self._finished(graph)
        if graph is not None:
            graph.push(None)
            yield from self._finished(graph)

    def _interlaced(self, picture: VideoFrame) -> bool:
        if picture.interlaced_frame and self.codec == "hevc":
            raise Rejection(
                "interlaced", "every frame of the video is a single field; weave and deinterlace the video first"
            )
        self.flagged = self.flagged or bool(picture.interlaced_frame)
        return bool(picture.interlaced_frame) or (not self.flagged and is_interlaced(picture, self.field_order))

    def _graph(self, picture: VideoFrame) -> Graph:
        """Build the filter. The filter returns a frame after it has received the next frame.

        Raises:
            Rejection: The frames are too small for the filter.
        """
        graph = Graph()
        graph.threads = 1
        self.layout = layout_of(picture)
        nodes = [
            graph.add_buffer(
                width=picture.width, height=picture.height, format=picture.format, time_base=self.time_base
            )
        ]
        if not picture.interlaced_frame:  # bwdif reads only the flags of frames, not the header
            nodes.append(graph.add("setfield", "tff" if self.field_order in _TOP_FIRST else "bff"))
        nodes += [
            graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
            graph.add("format", picture.format.name),
            graph.add("buffersink"),
        ]
        try:
            graph.link_nodes(*nodes).configure()
        except av.ArgumentError as error:
            size = f"{picture.width}x{picture.height}"
            raise Rejection(
                "interlaced", f"the video is interlaced, and its size {size} is too small for the filter"
            ) from error
        return graph

    def _finished(self, graph: Graph) -> Iterator[tuple[Fraction, Fraction, Shown]]:
        """Yield the frames that the filter has finished."""
        while True:
            try:
                progressive = graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            begins, ends, stored, interlaced = self.waiting.popleft()
            yield begins, ends, Shown(picture=progressive, interlaced=interlaced, rotation=stored.rotation)


def layout_of(picture: VideoFrame) -> tuple[int, int, str]:
    """Return width, height and pixel format of a frame. All frames of a stream must have the same layout."""
    return picture.width, picture.height, picture.format.name


def changed(before: tuple[int, int, str] | None, picture: VideoFrame) -> Rejection:
    """Return the Rejection of a stream because the layout of ``picture`` differs from ``before``, the first layout."""
    return Rejection("changing_size", f"the frames of the video change from {before} to {layout_of(picture)}")
