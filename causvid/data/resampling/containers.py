"""Choose the demuxer of a video file from the content of the file.

The suffix of a file name may be wrong. FFmpeg's detection of formats accepts playlists, which refer to other files.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from causvid.data.resampling.rejection import Rejection

# Types of boxes in ISO 14496-12 and QuickTime files. Boxes of other types may come first, but one of these types is
# present before the samples.
_MP4_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat"}
_IMAGE_BRANDS = {b"jp2 ", b"jpx ", b"jpm ", b"jxl "}  # JPEG 2000 and JPEG XL use the same boxes for still images
_MOST_BOXES = 1000  # number of boxes to read before a file is rejected


def demuxer(source: Path) -> str:
    """Return FFmpeg's name of the demuxer for ``source``: ``mp4``, ``matroska`` or ``avi``.

    A file is MP4 or QuickTime if one of its top-level boxes has a type in ``_MP4_BOXES``. As in FFmpeg, the type of the
    first box is not relevant.

    Raises:
        Rejection: The file is empty or has another format.
    """
    with source.open("rb") as stream:
        head = stream.read(12)
        if not head:
            raise Rejection("unreadable", "the file is empty")
        if head[:4] == b"\x1aE\xdf\xa3":
            return "matroska"
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return "avi"
        if any(box in _MP4_BOXES for box in _boxes(stream)):
            return "mp4"
    raise Rejection("unreadable", "the content of the file is not MP4, QuickTime, Matroska, WebM or AVI video")


def _boxes(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the types of the top-level boxes of ``stream``, up to an invalid size or the brand of a still image."""
    end = stream.seek(0, io.SEEK_END)
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > end:
            return
        stream.seek(at)
        head = stream.read(20)
        size, kind = struct.unpack_from(">I4s", head)
        header = 8
        if size == 1:  # the size follows in 64 bits
            header = 16
            size = struct.unpack_from(">Q", head, 8)[0] if len(head) >= header else 0
        elif size == 0:  # the box extends to the end of the file
            size = end - at
        if size < header or (kind == b"ftyp" and head[header : header + 4] in _IMAGE_BRANDS):
            return
        yield kind
        at += size
