"""HDR, wide-gamut and interlaced files are converted to clips and listed as converted, or rejected with a code."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from causvid.data.resampling import hdr
from causvid.data.resampling.clips import make_clip, resample_folder
from causvid.data.resampling.config import ResampleConfig
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.runtime.shapes import VideoShape
from tests.conftest import ONE_WORKER
from tests.unit.data.picture_files import LIMITED, MATRICES, Array, halved, planes_of, write_planes
from tests.unit.data.source_files import gray_frames, rotate, write_source

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)
CONVERT = ResampleConfig(aspect="crop", crf=1, hdr="tone_map", interlaced="deinterlace")
REJECT = replace(CONVERT, hdr="reject", interlaced="reject")
# Largest error, in steps of 1/255. Errors arise because clips are 8-bit H.264 with 4:2:0 colour, and decord rounds
# down.
CODING = 5.0


def _quarters(size: int = 64) -> Array:
    """Return R'G'B' of a frame whose four quarters have different colours."""
    signal = np.empty((size, size, 3))
    half = size // 2
    signal[:half, :half], signal[:half, half:] = (0.2, 0.5, 0.6), (0.7, 0.3, 0.3)
    signal[half:, :half], signal[half:, half:] = (0.45, 0.45, 0.2), (0.75, 0.75, 0.75)
    return signal


def _middles(frame: np.ndarray) -> np.ndarray:
    quarter = frame.shape[0] // 4
    return frame[[quarter, quarter, -quarter, -quarter], [quarter, -quarter, quarter, -quarter]].astype(float)


def _hdr(path: Path, transfer: int, *, size: int = 64, count: int = 12, codec: str = "libx265") -> Path:
    quiet = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else {"qp": "1"}
    planes = halved(planes_of(_quarters(size), "bt2020", full=False, bits=10))
    tags = (MATRICES["bt2020"], LIMITED, transfer, 9)
    return write_planes(path, [planes] * count, codec=codec, pix_fmt="yuv420p10le", tags=tags, stream=quiet)


def _interlaced(path: Path, *, size: int = 64, count: int = 12, codec: str = "libx264", first: str = "tff") -> Path:
    """Write an interlaced video in which a bar moves by four columns from one field to the next field."""
    column, pictures = np.arange(size)[None], []
    for index in range(count):
        fields = [np.where((column + size - 4 * moment) % size < size // 4, 220.0, 40.0) * np.ones((size, 1))
                  for moment in (2 * index, 2 * index + 1)]  # fmt: skip
        luma = fields[1]
        luma[(0 if first == "tff" else 1) :: 2] = fields[0][::2]
        pictures.append([luma, *np.full((2, size // 2, size // 2), 128.0)])
    stream = {"qp": "1", "x264-params": "interlaced=1"} if codec == "libx264" else {"qmin": "1", "qmax": "2"}
    return write_planes(
        path, pictures, codec=codec, pix_fmt="yuv420p", stream=stream, fields=[first] * count, interlaced=True
    )


def _combs(clip: np.ndarray) -> float:
    rows = clip.astype(float)
    return float(np.abs(np.diff(rows, axis=1)).mean() - np.abs(rows[:, 2:] - rows[:, :-2]).mean())


@pytest.mark.parametrize(
    ("suffix", "codec", "transfer"),
    [("mp4", "libx265", 18), ("mkv", "libx265", 16), ("mov", "libx264", 18), ("mkv", "libsvtav1", 16)],
)
def test_hdr_becomes_a_clip_of_bt709(tmp_path: Path, suffix: str, codec: str, transfer: int) -> None:
    source = _hdr(tmp_path / f"a.{suffix}", transfer, codec=codec)
    assert make_clip(source, tmp_path / "clip.mp4", video=VIDEO, config=CONVERT) == ["tone_map"]
    peak = hdr.PQ_PEAK if transfer == 16 else hdr.HLG_PEAK
    expected = hdr.to_bt709(_quarters(), transfer="pq" if transfer == 16 else "hlg", primaries="bt2020", peak=peak)
    for frame in read_frames(tmp_path / "clip.mp4"):
        assert np.abs(_middles(frame) - 255 * _middles(expected)).max() < CODING


@pytest.mark.parametrize(
    ("suffix", "codec", "first"),
    [("mp4", "libx264", "tff"), ("mov", "libx264", "bff"), ("mkv", "mpeg2video", "tff"), ("avi", "mpeg2video", "bff")],
)
def test_an_interlaced_video_becomes_a_clip_without_combing(
    tmp_path: Path, suffix: str, codec: str, first: str
) -> None:
    # The source has the size of the clip, so that no scaling can hide combing.
    source = _interlaced(tmp_path / f"a.{suffix}", size=32, codec=codec, first=first)
    assert make_clip(source, tmp_path / "clip.mp4", video=VIDEO, config=CONVERT) == ["deinterlace"]
    clip = read_frames(tmp_path / "clip.mp4")
    assert _combs(clip) < 1
    for index, frame in enumerate(clip):  # in every frame, the bar has the position of the first field
        bright = np.flatnonzero(frame[..., 0].mean(axis=0) > 130)
        assert set(bright) == {(8 * index + step) % 32 for step in range(8)}, index


def test_a_rotated_interlaced_hdr_video_is_converted_completely(tmp_path: Path) -> None:
    planes = halved(planes_of(_quarters(), "bt2020", full=False, bits=10))
    tags = (MATRICES["bt2020"], LIMITED, 18, 9)
    source = write_planes(
        tmp_path / "a.mov",
        [planes] * 12,
        codec="libx264",
        pix_fmt="yuv420p10le",
        tags=tags,
        stream={"qp": "1", "x264-params": "interlaced=1"},
        fields=["tff"] * 12,
        interlaced=True,
    )
    rotate(source, 180)
    assert make_clip(source, tmp_path / "clip.mp4", video=VIDEO, config=CONVERT) == ["deinterlace", "tone_map"]
    expected = hdr.to_bt709(_quarters(), transfer="hlg", primaries="bt2020", peak=1000)[::-1, ::-1]
    found = read_frames(tmp_path / "clip.mp4")[0]
    assert np.abs(_middles(found) - 255 * _middles(expected)).max() < CODING


# --- Sources that already have the size, rate and length of a clip; only some may be copied


@pytest.mark.parametrize(
    ("name", "pix_fmt", "tags", "copied"),
    [
        ("untagged", "yuv420p", (2, 0, 2, 2), True),
        ("bt601", "yuv420p", (6, 1, 6, 6), True),
        ("bt709", "yuv420p", (1, 1, 1, 1), True),
        ("bt2020", "yuv420p", (9, 1, 14, 1), False),
        ("fcc", "yuv420p", (4, 1, 1, 1), False),
        ("full range", "yuv420p", (6, 2, 6, 6), False),
        ("full range j", "yuvj420p", (1, 2, 1, 1), False),
        ("hlg in 8 bits", "yuv420p", (9, 1, 18, 9), False),
        ("pq in 8 bits", "yuv420p", (1, 1, 16, 1), False),
        ("wide gamut", "yuv420p", (1, 1, 1, 12), False),
    ],
)
def test_only_files_that_the_reader_decodes_correctly_are_copied(
    tmp_path: Path, name: str, pix_fmt: str, tags: tuple[int, int, int, int], copied: bool
) -> None:
    matrix = {number: matrix for matrix, number in MATRICES.items()}.get(tags[0], "bt601")
    signal = _quarters(32)
    planes = halved(planes_of(signal, matrix, full=tags[1] == 2, bits=8))
    source = write_planes(
        tmp_path / "a.mp4", [planes] * 9, codec="libx264", pix_fmt=pix_fmt, tags=tags, stream={"qp": "1"}
    )
    converted = make_clip(source, tmp_path / "clip.mp4", video=VIDEO, config=CONVERT)
    assert ((tmp_path / "clip.mp4").read_bytes() == source.read_bytes()) == copied
    expected = signal
    if converted:
        transfer: hdr.Transfer = "pq" if tags[2] == 16 else "hlg" if tags[2] == 18 else "sdr"
        primaries: hdr.Primaries = "p3" if tags[3] == 12 else "bt2020" if tags[3] == 9 else "bt709"
        expected = hdr.to_bt709(
            signal, transfer=transfer, primaries=primaries, peak=hdr.PQ_PEAK if transfer == "pq" else hdr.HLG_PEAK
        )
    found = read_frames(tmp_path / "clip.mp4")[4]
    assert np.abs(_middles(found) - 255 * _middles(expected)).max() < CODING, name


def test_an_interlaced_file_of_the_clip_size_is_not_copied(tmp_path: Path) -> None:
    source = _interlaced(tmp_path / "a.mp4", size=32, count=9)
    assert make_clip(source, tmp_path / "clip.mp4", video=VIDEO, config=CONVERT) == ["deinterlace"]
    assert (tmp_path / "clip.mp4").read_bytes() != source.read_bytes()


# --- Rows of manifest.jsonl and rejected.jsonl


def _folder(tmp_path: Path, sources: list[Path]) -> Path:
    rows = [
        {"id": f"{i:06d}", "path": path.name, "caption": "bars", "source": path.name} for i, path in enumerate(sources)
    ]
    manifest.write_rows(tmp_path / manifest.NAME, rows)
    return tmp_path


def _mixed(tmp_path: Path) -> list[Path]:
    return [
        write_source(tmp_path / "plain.mp4", gray_frames(12, 48, 64), fps=8),
        _hdr(tmp_path / "hlg.mp4", 18),
        _hdr(tmp_path / "pq.mkv", 16),
        _interlaced(tmp_path / "interlaced.mov"),
        _interlaced(tmp_path / "tape.avi", codec="mpeg2video", first="bff"),
    ]


def test_the_manifest_lists_the_conversions(tmp_path: Path) -> None:
    raw = _folder(tmp_path, _mixed(tmp_path))
    resample_folder(raw, tmp_path / "out", video=VIDEO, config=CONVERT, compute=ONE_WORKER)
    rows = {row["source"]: row for row in manifest.read_manifest(tmp_path / "out")}
    assert {source: row.get("converted") for source, row in rows.items()} == {
        "plain.mp4": None,
        "hlg.mp4": ["tone_map"],
        "pq.mkv": ["tone_map"],
        "interlaced.mov": ["deinterlace"],
        "tape.avi": ["deinterlace"],
    }
    assert "converted" not in rows["plain.mp4"]


def test_hdr_and_interlaced_videos_can_be_rejected_with_a_reason(tmp_path: Path) -> None:
    raw = _folder(tmp_path, _mixed(tmp_path))
    counts = resample_folder(raw, tmp_path / "out", video=VIDEO, config=REJECT, compute=ONE_WORKER)
    rejected = {row["source"]: row for row in manifest.read_rows(tmp_path / "out" / "rejected.jsonl")}
    assert counts["rejected_by_code"] == {"hdr": 2, "interlaced": 2}
    assert rejected["hlg.mp4"]["reason"] == "the video is HDR (HLG); set resample.hdr to tone_map"
    assert rejected["pq.mkv"]["reason"] == "the video is HDR (PQ); set resample.hdr to tone_map"
    assert rejected["tape.avi"]["reason"] == "the video is interlaced; set resample.interlaced to deinterlace"
    assert [row["source"] for row in manifest.read_manifest(tmp_path / "out")] == ["plain.mp4"]


def test_colours_that_change_within_a_video_are_converted(tmp_path: Path) -> None:
    """The stream consists of two recordings, and the second recording is HLG."""
    plain = halved(planes_of(_quarters(), "bt709", full=False, bits=10))
    bright = halved(planes_of(_quarters(), "bt2020", full=False, bits=10))
    parts = [
        write_planes(tmp_path / f"{i}.h264", [planes] * 6, codec="libx264", pix_fmt="yuv420p10le", tags=tags,
                     stream={"qp": "1", "bf": "0"})
        for i, (planes, tags) in enumerate([(plain, (1, 1, 1, 1)), (bright, (9, 1, 18, 9))])
    ]  # fmt: skip
    joined = _joined(tmp_path / "a.mkv", parts)
    assert make_clip(joined, tmp_path / "clip.mp4", video=VIDEO, config=CONVERT) == ["tone_map"]
    clip = read_frames(tmp_path / "clip.mp4")
    shown = hdr.to_bt709(_quarters(), transfer="hlg", primaries="bt2020", peak=1000)
    assert np.abs(_middles(clip[2]) - 255 * _middles(_quarters())).max() < CODING
    assert np.abs(_middles(clip[8]) - 255 * _middles(shown)).max() < CODING


def _joined(path: Path, parts: list[Path]) -> Path:
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=8)
        track.height, track.width, track.pix_fmt = 64, 64, "yuv420p10le"
        index = 0
        for part in parts:
            with av.open(str(part)) as source:
                for number, stored in enumerate(packet for packet in source.demux(video=0) if packet.size):
                    packet = av.Packet(bytes(stored))
                    packet.stream, packet.time_base, packet.pts, packet.dts = track, Fraction(1, 8), index, index
                    packet.is_keyframe = number == 0
                    container.mux(packet)
                    index += 1
    return path
