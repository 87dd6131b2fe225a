"""Decode a source video strictly with FFmpeg: any damage that FFmpeg reports or conceals raises Rejection."""

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

SILENT_END = Fraction(1, 2)  # seconds by which the announced duration may exceed the end of the last packet


@contextmanager
def open_strictly(source: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video for strict decoding.

    Yields:
        The container and its first video stream that is not a cover image.

    Raises:
        Rejection: The file cannot be opened or has no video, or FFmpeg reported damage inside the ``with`` block.
    """
    # With "file:" and the whitelist, FFmpeg opens no network connection, whatever the file name or the header contains.
    url, only = f"file:{source.resolve()}", {"protocol_whitelist": "file"}
    with _complaints() as messages:
        try:
            container = av.open(url, format=demuxer(source), options=only, metadata_errors="replace")
        except MemoryError:
            raise
        except av.FFmpegError as error:
            raise Rejection("unreadable", f"the file cannot be opened: {error.strerror}") from error
        with container:
            shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not shown:
                raise Rejection("no_video_stream", "the file has no video stream")
            if shown[0].codec_context is None:
                raise Rejection("unreadable", "there is no decoder for the codec of the video")
            shown[0].codec_context.options = {"err_detect": "explode"}
            shown[0].codec_context.thread_count = 1
            try:
                yield container, shown[0]
            except MemoryError:
                raise
            except av.FFmpegError as error:
                raise Rejection("damaged", f"decoding stopped: {error.strerror}") from error
    if messages:
        raise Rejection("damaged", f"the decoder reported: {messages[0]}")


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect FFmpeg's messages about damage that FFmpeg conceals. The list is filled at the end of the block."""
    messages: list[str] = []
    before = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            yield messages
        messages += [text.strip() for level, _, text in lines if level <= av.logging.ERROR or "concealing" in text]
    finally:
        av.logging.set_level(before)


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
    """Yield the packets of ``stream`` up to the end of the file. Raises Rejection if the end is missing."""
    seconds = Fraction(0)
    for packet in container.demux():
        if packet.is_corrupt:
            raise Rejection("damaged", "the file is truncated, or a part of it is missing")
        if packet.pts is not None and packet.time_base is not None:
            seconds = max(seconds, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream is stream:
            yield packet
    # A Matroska file stores no number of packets. Only its announced duration, which is counted from a timestamp of 0,
    # shows that the file is truncated.
    announced = Fraction(container.duration or 0, av.time_base)
    if not stream.frames and seconds + SILENT_END < announced:
        raise Rejection(
            "damaged", f"the file ends after {float(seconds):.1f} of {float(announced):.1f} announced seconds"
        )


def timed_pictures(
    packets: Iterable[Packet[Any]], stream: VideoStream
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Decode packets.

    Yields:
        (time at which a frame appears, time at which it ends, frame). Times are in seconds after the first frame.

    Raises:
        Rejection: A frame is damaged, or its timestamp is wrong.
    """
    first = latest = None
    for packet in packets:
        for picture in packet.decode():
            assert isinstance(picture, VideoFrame)
            if picture.is_corrupt:
                raise Rejection("damaged", "a part of a frame is missing")
            if picture.time is None or picture.pts is None or picture.time_base is None:
                raise Rejection("damaged", "a frame has no timestamp")
            begins = picture.pts * picture.time_base
            first = begins if first is None else first
            if latest is not None and begins < latest:
                raise Rejection("damaged", "the timestamps of the video decrease")
            latest = begins
            usual = 1 / stream.guessed_rate if stream.guessed_rate else Fraction(0)
            lasts = picture.duration * picture.time_base if picture.duration else usual
            yield begins - first, begins - first + lasts, picture
