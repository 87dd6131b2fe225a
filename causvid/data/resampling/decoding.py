"""Strict decoding of a source video with FFmpeg: any damage that FFmpeg reports or conceals is a Rejection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from causvid.data.resampling.containers import demuxer
from causvid.data.resampling.rejection import Rejection

SILENT_END = Fraction(1, 2)  # seconds that a container may announce beyond its last packet


@contextmanager
def open_strictly(source: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video for strict decoding.

    Yields:
        The container and its first video stream.

    Raises:
        Rejection: The file cannot be opened or has no video, or the body of the ``with`` statement met damage.
    """
    # "file:" and the whitelist keep a name or a header from reaching the network or other files.
    url, only = f"file:{source.resolve()}", {"protocol_whitelist": "file"}
    with _complaints() as said:
        try:
            container = av.open(url, format=demuxer(source), options=only, metadata_errors="replace")
        except MemoryError:
            raise
        except av.FFmpegError as error:
            raise Rejection("unreadable", f"the file cannot be opened: {error.strerror}") from error
        with container:
            shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not shown:
                raise Rejection("no_video_stream", "the file holds no video, only other streams")
            if shown[0].codec_context is None:
                raise Rejection("unreadable", "its codec is unknown here")
            shown[0].codec_context.options = {"err_detect": "explode"}
            shown[0].codec_context.thread_count = 1
            try:
                yield container, shown[0]
            except MemoryError:
                raise
            except av.FFmpegError as error:
                raise Rejection("damaged", f"decoding stopped: {error.strerror}") from error
    if said:
        raise Rejection("damaged", f"its decoder complained: {said[0]}")


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect FFmpeg's messages about damage, which it conceals. The list is filled when the body ends."""
    said: list[str] = []
    before = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            yield said
        said += [text.strip() for level, _, text in lines if level <= av.logging.ERROR or "concealing" in text]
    finally:
        av.logging.set_level(before)


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
    """Yield the packets of ``stream`` up to the end of the file. Raises Rejection if the end is missing."""
    seconds = Fraction(0)
    for packet in container.demux():
        if packet.is_corrupt:
            raise Rejection("damaged", "the file was cut short or a part of it is missing")
        if packet.pts is not None and packet.time_base is not None:
            seconds = max(seconds, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream is stream:
            yield packet
    # Matroska does not list its packets; a cut there shows in the announced length only, which counts from 0.
    announced = Fraction(container.duration or 0, av.time_base)
    if not stream.frames and seconds + SILENT_END < announced:
        raise Rejection("damaged", f"the file ends at {float(seconds):.1f} of {float(announced):.1f} announced seconds")


def timed_pictures(
    packets: Iterable[Packet[Any]], stream: VideoStream
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yield every picture after the times at which it appears and ends, in seconds after the first picture.

    Raises:
        Rejection: A picture is damaged or its time stamp is wrong.
    """
    first = latest = None
    for packet in packets:
        for picture in packet.decode():
            assert isinstance(picture, VideoFrame)
            if picture.is_corrupt:
                raise Rejection("damaged", "a part of the picture is missing")
            if picture.time is None or picture.pts is None or picture.time_base is None:
                raise Rejection("damaged", "a picture has no time stamp")
            begins = picture.pts * picture.time_base
            first = begins if first is None else first
            if latest is not None and begins < latest:
                raise Rejection("damaged", "its time stamps run backwards")
            latest = begins
            usual = 1 / stream.guessed_rate if stream.guessed_rate else Fraction(0)
            lasts = picture.duration * picture.time_base if picture.duration else usual
            yield begins - first, begins - first + lasts, picture
