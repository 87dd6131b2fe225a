"""The demuxer is chosen correctly: MP4 with any first box is accepted, and files in other formats are rejected."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from causvid.data.resampling.clips import make_clip
from causvid.data.resampling.config import ResampleConfig
from causvid.data.resampling.containers import demuxer
from causvid.data.resampling.rejection import Rejection
from causvid.data.videos.video_reader import read_frames
from causvid.runtime.shapes import VideoShape
from tests.unit.data.source_files import gray_frames, write_source

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)
CROP = ResampleConfig(aspect="crop", crf=8, hdr="tone_map", interlaced="deinterlace")
FRAGMENTS = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}


def _box(kind: bytes, content: bytes, *, wide: bool = False) -> bytes:
    if wide:  # the box has a 64-bit size
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _in_front(content: bytes, before: bytes, *, instead_of_ftyp: bool = False) -> bytes:
    """Return ``before`` followed by ``content``, whose chunk offsets are adjusted."""
    start = struct.unpack_from(">I", content)[0] if instead_of_ftyp else 0
    moved = bytearray(content[start:])
    at = moved.index(b"stco") + 8
    count = struct.unpack_from(">I", moved, at)[0]
    for place in range(at + 4, at + 4 + 4 * count, 4):
        struct.pack_into(">I", moved, place, struct.unpack_from(">I", moved, place)[0] + len(before) - start)
    return before + bytes(moved)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a plain MP4 file. The file clip.mp4 in the same folder is a clip made from the MP4 file."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_source(folder / "whole.mp4", gray_frames(20, 48, 64), fps=8)
    make_clip(source, folder / "clip.mp4", video=VIDEO, config=CROP)
    return source


FIRST = {
    "styp": _box(b"styp", b"msdh\0\0\0\0msdhmsix"),
    "uuid": _box(b"uuid", bytes(range(40))),
    "free": _box(b"free", bytes(100)),
    "skip": _box(b"skip", b""),
    "wide": _box(b"wide", b""),
    "junk": _box(b"junk", b"ID"),
    "pict": _box(b"pict", bytes(500)),
    "prfl": _box(b"prfl", bytes(20)),
    "pdin": _box(b"pdin", bytes(12)),
    "emsg": _box(b"emsg", bytes(30)),
    "meta": _box(b"meta", bytes(12)),
    "an unknown type": _box(b"zzzz", bytes(7)),
    "a type that is not text": _box(b"\x82\x82\x7f\x7d", bytes(16)),
    "a 64-bit size": _box(b"uuid", bytes(33), wide=True),
    "several": _box(b"free", b"") + _box(b"uuid", bytes(16)) + _box(b"abcd", bytes(5), wide=True),
    "many boxes": 50 * _box(b"free", bytes(3)),
    "a large box": _box(b"free", bytes(3_000_000)),
}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("instead", [False, True], ids=["before ftyp", "instead of ftyp"])
def test_a_file_with_any_first_box_is_mp4(tmp_path: Path, whole: Path, name: str, instead: bool) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(_in_front(whole.read_bytes(), FIRST[name], instead_of_ftyp=instead))
    assert demuxer(path) == "mp4"
    make_clip(path, tmp_path / "clip.mp4", video=VIDEO, config=CROP)
    assert (tmp_path / "clip.mp4").read_bytes() == (whole.parent / "clip.mp4").read_bytes()


@pytest.mark.parametrize("name", ["fragments", "sidx first", "moof boxes after styp", "mdat of size 0", "wide mdat"])
def test_fragments_and_odd_sizes_are_mp4(tmp_path: Path, whole: Path, name: str) -> None:
    options = {"movflags": "+faststart"} if name == "mdat of size 0" else FRAGMENTS
    frames = gray_frames(20, 48, 64)
    content = write_source(tmp_path / "origin.mp4", frames, fps=8, options=options, stream={"g": "5"}).read_bytes()
    if name == "sidx first":
        content = _box(b"sidx", bytes(24) + bytes(8)) + content
    elif name == "moof boxes after styp":
        content = content.replace(b"ftyp", b"styp", 1)
    elif name == "mdat of size 0":
        at = content.index(b"mdat") - 4
        content = content[:at] + bytes(4) + content[at + 4 :]
    elif name == "wide mdat":
        content = _wide_first(whole.read_bytes())
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert demuxer(path) == "mp4"
    make_clip(path, tmp_path / "clip.mp4", video=VIDEO, config=CROP)
    np.testing.assert_allclose(
        read_frames(tmp_path / "clip.mp4").astype(int), read_frames(whole.parent / "clip.mp4").astype(int), atol=3
    )


def _wide_first(content: bytes) -> bytes:
    """Move the samples into a first box with a 64-bit size, as in old QuickTime files without ftyp and free boxes."""
    start = content.index(b"mdat") - 4
    size = struct.unpack_from(">I", content, start)[0]
    samples, rest = content[start + 8 : start + size], content[start + size :]
    moved = bytearray(rest)
    at = moved.index(b"stco") + 8
    for place in range(at + 4, at + 4 + 4 * struct.unpack_from(">I", moved, at)[0], 4):
        old = struct.unpack_from(">I", moved, place)[0]
        struct.pack_into(">I", moved, place, old - (start + 8) + 16)
    return _box(b"mdat", samples, wide=True) + bytes(moved)


@pytest.mark.parametrize(
    "content",
    [
        b"free",
        b"this is no video, and long enough to look like one\n",
        _box(b"free", bytes(100)),
        _box(b"free", b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1/a.ts\n#EXT-X-ENDLIST\n"),
        _box(b"free", b"") + b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1/a.ts\n#EXT-X-ENDLIST\n",
        _box(b"uuid", bytes(16)) + b"ffconcat version 1.0\nfile /etc/hostname\n",
        struct.pack(">I4s", 0, b"uuid") + bytes(50) + _box(b"ftyp", b"isom"),
        struct.pack(">I4s", 7, b"free") + _box(b"ftyp", b"isom"),
        struct.pack(">I4sQ", 1, b"uuid", 15) + _box(b"ftyp", b"isom"),
        struct.pack(">I4sQ", 1, b"uuid", 2**64 - 1) + _box(b"ftyp", b"isom"),
        struct.pack(">I4s", 1, b"uuid") + b"\0\0",
        _box(b"jP  ", b"\r\n\x87\n") + _box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
        _box(b"JXL ", b"\r\n\x87\n") + _box(b"ftyp", b"jxl \0\0\0\0jxl "),
        b"\x89PNG\r\n\x1a\n" + _box(b"IHDR", bytes(13)),
        b"\0\0\x01\xba" + bytes(40),
        2000 * _box(b"free", b""),
    ],
    ids=range(16),
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(Rejection, match="is not MP4, QuickTime, Matroska, WebM or AVI") as caught:
        demuxer(path)
    assert caught.value.code == "unreadable"


def test_ffmpeg_detects_every_accepted_file_as_mp4(tmp_path: Path, whole: Path) -> None:
    """FFmpeg detects the format if the first box is not larger than the part of the file that FFmpeg probes."""
    for name, first in FIRST.items():
        if name in ("a large box", "many boxes"):
            continue
        path = tmp_path / "a.bin"
        path.write_bytes(_in_front(whole.read_bytes(), first))
        with av.open(str(path)) as container:
            assert "mp4" in container.format.name, name
