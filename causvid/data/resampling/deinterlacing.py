"""Deinterlace pictures, whose odd and even rows show two moments."""

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

# AVFieldOrder of a stream's header, by the field that is shown first.
_TOP_FIRST, _BOTTOM_FIRST = {2, 5}, {3, 4}


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A decoded picture to show.

    Attributes:
        picture: The picture, deinterlaced if it was interlaced and that is wanted.
        interlaced: Whether the picture was stored interlaced.
        rotation: Degrees by which to turn it to the left.
    """

    picture: VideoFrame
    interlaced: bool
    rotation: int


def is_interlaced(picture: VideoFrame, field_order: int) -> bool:
    """Whether the tags of a picture or of its stream's header say interlaced."""
    return bool(picture.interlaced_frame) or field_order in _TOP_FIRST | _BOTTOM_FIRST


class Deinterlacer:
    """Replaces each interlaced picture by a progressive one at the time of its first field, with FFmpeg's bwdif filter.

    Only tags decide whether a picture is interlaced, so telecined film and progressive pictures with a wrong tag count
    as interlaced. The stream's header is used until a picture has a flag of its own, because some codecs have no flags.

    Args:
        codec: FFmpeg's name of the stream's codec.
        field_order: FFmpeg's AVFieldOrder of the stream's header, before the first picture was decoded.
        time_base: The unit of the pictures' time stamps, in seconds.
        replace: Whether to replace interlaced pictures. If not, they are only marked as interlaced.
    """

    def __init__(self, *, codec: str, field_order: int, time_base: Fraction, replace: bool) -> None:
        self.codec, self.field_order, self.time_base, self.replace = codec, field_order, time_base, replace
        self.flagged = False
        self.layout: tuple[int, int, str] | None = None
        self.waiting: deque[tuple[Fraction, Fraction, VideoFrame, bool]] = deque()

    def __call__(self, pictures: Iterable[Timed]) -> Iterator[tuple[Fraction, Fraction, Shown]]:
        """Yield one picture for each of ``pictures``, with its times. Progressive pictures are yielded unchanged.

        Raises:
            Rejection: The pictures are single fields, too small, or change their size on the way.
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
            raise Rejection("interlaced", "each of its pictures is a single field; weave and deinterlace it first")
        self.flagged = self.flagged or bool(picture.interlaced_frame)
        return bool(picture.interlaced_frame) or (not self.flagged and is_interlaced(picture, self.field_order))

    def _graph(self, picture: VideoFrame) -> Graph:
        """Build the filter. It returns one picture for each, after it has seen the next one. Raises Rejection."""
        graph = Graph()
        graph.threads = 1
        self.layout = layout_of(picture)
        nodes = [
            graph.add_buffer(
                width=picture.width, height=picture.height, format=picture.format, time_base=self.time_base
            )
        ]
        if not picture.interlaced_frame:  # the filter looks at flags only
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
            raise Rejection("interlaced", f"it is interlaced and with {size} too small to be deinterlaced") from error
        return graph

    def _finished(self, graph: Graph) -> Iterator[tuple[Fraction, Fraction, Shown]]:
        """Yield the pictures that the filter has finished."""
        while True:
            try:
                whole = graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            begins, ends, stored, interlaced = self.waiting.popleft()
            yield begins, ends, Shown(picture=whole, interlaced=interlaced, rotation=stored.rotation)


def layout_of(picture: VideoFrame) -> tuple[int, int, str]:
    """Return width, height and pixel format, which must be the same for every picture of a stream."""
    return picture.width, picture.height, picture.format.name


def changed(before: tuple[int, int, str] | None, picture: VideoFrame) -> Rejection:
    """Return the Rejection of a stream whose ``picture`` has another layout than those ``before``."""
    return Rejection("changing_size", f"its pictures change from {before} to {layout_of(picture)} on the way")
