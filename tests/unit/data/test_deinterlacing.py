"""Deinterlacing turns each frame into a progressive frame at the time of its first field, or rejects the video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from causvid.data.resampling.deinterlacing import Deinterlacer, Shown, Timed
from causvid.data.resampling.rejection import Rejection
from tests.unit.data.picture_files import Array, flagged, picture_of, write_planes

HEIGHT, WIDTH, COUNT = 64, 96, 10


def _moment(half: int) -> Array:
    """Return the luma of field number ``half``. A bright bar moves by three columns from field to field."""
    column = np.arange(WIDTH)[None]
    bar = (column >= 8 + 3 * half) & (column < 20 + 3 * half)
    return np.where(bar, 200.0, 50.0) * np.ones((HEIGHT, 1))


def _woven(index: int, first: str) -> list[Array]:
    """Return the 4:2:0 frame that consists of the fields 2 index and 2 index + 1."""
    luma = _moment(2 * index + 1)
    rows = slice(0, None, 2) if first == "tff" else slice(1, None, 2)
    luma[rows] = _moment(2 * index)[rows]
    return [luma, np.full((HEIGHT // 2, WIDTH // 2), 128.0), np.full((HEIGHT // 2, WIDTH // 2), 128.0)]


def _whole(index: int) -> list[Array]:
    return [_moment(2 * index), *_woven(index, "tff")[1:]]


def _combs(luma: np.ndarray) -> float:
    """Return the mean difference of neighbouring frame rows minus that difference of neighbouring field rows."""
    rows = luma.astype(float)
    return float(np.abs(np.diff(rows, axis=0)).mean() - np.abs(rows[2:] - rows[:-2]).mean())


def _luma(picture: av.VideoFrame) -> np.ndarray:
    luma = np.frombuffer(picture.planes[0], np.uint8 if picture.format.components[0].bits == 8 else np.uint16)
    rows = luma.reshape(picture.height, -1)[:, : picture.width].astype(float)
    return rows / 2 ** (picture.format.components[0].bits - 8)


def _timed(path: Path, *, replace: bool = True) -> list[tuple[Fraction, Fraction, Shown]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base or Fraction(1)
        whole = Deinterlacer(
            codec=stream.codec_context.name,
            field_order=stream.codec_context.field_order,
            time_base=base,
            replace=replace,
        )
        pictures: list[Timed] = []
        for picture in container.decode(stream):
            begins = (picture.pts or 0) * base
            pictures.append((begins, begins + Fraction(1, 25), picture))
        return list(whole(pictures))


def _codec(name: str) -> dict[str, object]:
    return {
        "h264": {"codec": "libx264", "pix_fmt": "yuv420p", "stream": {"qp": "0", "x264-params": "interlaced=1"}},
        "mpeg2": {"codec": "mpeg2video", "pix_fmt": "yuv420p", "stream": {"qmin": "1", "qmax": "1"}},
        "prores": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "stream": {"profile": "hq"}},
    }[name]


def _source(path: Path, name: str, fields: list[str]) -> Path:
    pictures = [_woven(index, field) for index, field in enumerate(fields)]
    if name == "prores":
        pictures = [[4 * luma, *(4 * part.repeat(2, axis=0) for part in rest)] for luma, *rest in pictures]
    return write_planes(path, pictures, fps=25, fields=fields, interlaced=True, **_codec(name))  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize(("name", "suffix"), [("h264", "mp4"), ("mpeg2", "mkv"), ("prores", "mov"), ("h264", "avi")])
def test_each_frame_shows_one_moment_and_keeps_its_time(tmp_path: Path, name: str, suffix: str, first: str) -> None:
    path = _source(tmp_path / f"a.{suffix}", name, [first] * COUNT)
    stored = _timed(path, replace=False)
    assert all(shown.interlaced for _, _, shown in stored)
    assert _combs(_luma(stored[4][2].picture)) > 5
    deinterlaced = _timed(path)
    assert [times for *times, _ in deinterlaced] == [times for *times, _ in stored]
    for index, (_, _, shown) in enumerate(deinterlaced):
        luma = _luma(shown.picture)
        assert shown.interlaced
        assert _combs(luma) < 0.5, index
        near, far = (np.abs(luma - _moment(moment)).mean() for moment in (2 * index, 2 * index + 1))
        assert near < 2 < 6 < far, index  # the frame shows the first field, and not the second field


@pytest.mark.parametrize("fields", ["ppptttpp", "tttpppp", "ptptptpt", "bbbpppbb"])
def test_progressive_frames_among_interlaced_frames_are_unchanged(fields: str) -> None:
    flags = [{"p": "prog", "t": "tff", "b": "bff"}[letter] for letter in fields]
    pictures: list[Timed] = []
    for index, flag in enumerate(flags):
        planes = _whole(index) if flag == "prog" else _woven(index, flag)
        picture = flagged(picture_of(planes, "yuv420p"), flag)
        picture.pts, picture.time_base = index, Fraction(1, 25)
        pictures.append((Fraction(index, 25), Fraction(index + 1, 25), picture))
    # If the first frame is interlaced, the header says interlaced, as in a file that FFmpeg wrote.
    order = 0 if fields.startswith("p") else 2
    whole = Deinterlacer(codec="h264", field_order=order, time_base=Fraction(1, 25), replace=True)
    deinterlaced = list(whole(pictures))
    assert [shown.interlaced for _, _, shown in deinterlaced] == [flag != "prog" for flag in flags]
    assert [times for *times, _ in deinterlaced] == [times for *times, _ in pictures]
    for (_, _, before), (_, _, after) in zip(pictures, deinterlaced, strict=True):
        assert np.array_equal(_luma(before), _luma(after.picture)) != after.interlaced
        assert _combs(_luma(after.picture)) < 0.5


@pytest.mark.parametrize(("order", "first"), [(2, "tff"), (3, "bff"), (4, "bff"), (5, "tff")])
def test_the_header_decides_if_frames_have_no_flags(tmp_path: Path, order: int, first: str) -> None:
    """FFmpeg's FFV1 frames have no interlaced flag, but the Matroska header has an interlaced flag."""
    path = write_planes(
        tmp_path / "a.mkv",
        [_woven(k, first) for k in range(COUNT)],
        codec="ffv1",
        pix_fmt="yuv420p",
        fps=25,
        header_order=order,
    )
    deinterlaced = _timed(path)
    assert len(deinterlaced) == COUNT
    for index, (_, _, shown) in enumerate(deinterlaced):
        assert shown.interlaced
        assert np.abs(_luma(shown.picture) - _moment(2 * index)).mean() < 2


def test_progressive_video_is_unchanged(tmp_path: Path) -> None:
    path = write_planes(
        tmp_path / "a.mp4", [_whole(k) for k in range(COUNT)], codec="libx264", pix_fmt="yuv420p", fps=25
    )
    found = _timed(path)
    assert not any(shown.interlaced for _, _, shown in found)
    assert [_luma(shown.picture).tolist() for _, _, shown in found] == [
        _luma(shown.picture).tolist() for _, _, shown in _timed(path, replace=False)
    ]


@pytest.mark.parametrize("size", [2, 4, 6])
def test_frames_too_small_to_deinterlace_are_rejected(size: int) -> None:
    planes = [np.full((size, size), 90.0), *np.full((2, size // 2, size // 2), 128.0)]
    picture = flagged(picture_of(planes, "yuv420p"), "tff")
    whole = Deinterlacer(codec="h264", field_order=0, time_base=Fraction(1, 25), replace=True)
    with pytest.raises(Rejection, match=f"interlaced, and its size {size}x{size} is too small"):
        list(whole([(Fraction(0), Fraction(1, 25), picture)]))


def test_a_change_of_size_among_interlaced_frames_is_rejected() -> None:
    pictures = []
    for index, size in enumerate((32, 32, 48)):
        planes = [np.full((size, size), 90.0), *np.full((2, size // 2, size // 2), 128.0)]
        picture = flagged(picture_of(planes, "yuv420p"), "tff")
        picture.pts, picture.time_base = index, Fraction(1, 25)
        pictures.append((Fraction(index, 25), Fraction(index + 1, 25), picture))
    whole = Deinterlacer(codec="h264", field_order=0, time_base=Fraction(1, 25), replace=True)
    with pytest.raises(Rejection, match="change from") as caught:
        list(whole(pictures))
    assert caught.value.code == "changing_size"


def test_hevc_of_single_fields_is_rejected(tmp_path: Path) -> None:
    path = write_planes(
        tmp_path / "a.mkv",
        [_whole(k) for k in range(COUNT)],
        codec="libx265",
        pix_fmt="yuv420p",
        fps=50,
        stream={"x265-params": "interlace=tff:log-level=none"},
    )
    with pytest.raises(Rejection, match="every frame of the video is a single field") as caught:
        _timed(path)
    assert caught.value.code == "interlaced"
