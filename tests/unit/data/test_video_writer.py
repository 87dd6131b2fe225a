"""write_video writes the same bytes every time, writes a complete file or no file, and preserves colours in 4:2:0."""

from __future__ import annotations

import errno
import io
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.data.sources.toy_world import BACKGROUNDS, COLOURS, Scene
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import VideoEncoder, open_video, remove_unfinished, write_video
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)


def _clip(colour: str = "red", background: str = "navy") -> np.ndarray:
    scene = Scene(shape="circle", colour=colour, direction="left", background=background)
    return toy_world.render(scene, video=VIDEO, start_xy=(20, 12), radius=6.0)


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    # Many clips are encoded several times, because with x264's macroblock tree one in six encodings differs.
    video = VideoShape(height=32, width=32, frames=33, fps=8)
    for index, caption in enumerate(toy_world.clip_captions(toy_world.captions(), 40, seed=0)):
        frames = toy_world.clip_frames(caption, index, video=video, seed=0)
        written = set()
        for name in ("a.mp4", "another name.mp4", "a.mp4", "a.mp4"):
            write_video(tmp_path / name, frames, fps=8, crf=8)
            written.add((tmp_path / name).read_bytes())
        assert len(written) == 1, caption
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "another name.mp4"]


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 9), height=st.integers(8, 24), width=st.integers(8, 24), fps=st.sampled_from((1, 8, 16, 30))
)
def test_size_rate_and_count_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, frames: int, height: int, width: int, fps: int
) -> None:
    path = tmp_path_factory.mktemp("written") / "a.mp4"
    write_video(path, np.full((frames, 2 * height, 2 * width, 3), 90, np.uint8), fps=fps, crf=20)
    assert read_frames(path).shape == (frames, 2 * height, 2 * width, 3)
    with av.open(str(path)) as container:
        times = sorted(float(packet.pts * packet.time_base) for packet in container.demux() if packet.pts is not None)
    assert times == pytest.approx([k / fps for k in range(frames)])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_colours_of_the_toy_world_are_preserved(tmp_path: Path, colour: str, background: str) -> None:
    write_video(tmp_path / "a.mp4", _clip(colour, background), fps=8, crf=10)
    frame = read_frames(tmp_path / "a.mp4")[0].astype(int)
    assert np.abs(frame[12, 20] - COLOURS[colour]).max() <= 6
    assert np.abs(np.median(frame.reshape(-1, 3), axis=0) - BACKGROUNDS[background]).max() <= 3


def test_the_matrix_and_range_are_tagged_in_the_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _clip(), fps=8, crf=10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        picture = next(container.decode(video=0))
    assert (picture.format.name, picture.colorspace, picture.color_range) == ("yuv420p", 5, 1)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), "must be uint8"),
        (np.zeros((3, 3, 32, 32), np.uint8), "must be uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), "F at least 1"),
        (np.zeros((3, 31, 32, 3), np.uint8), "31x32"),
    ],
)
def test_frames_of_a_wrong_shape_or_type_are_refused(tmp_path: Path, frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, fps=8, crf=10)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """The file system fails in the middle of the first video. The next video is not affected."""
    (tmp_path / "a.mp4").write_bytes(b"old")
    with full_at(4096), pytest.raises(OSError, match="File too large"):
        write_video(tmp_path / "a.mp4", _noise(40), fps=8, crf=10)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    write_video(tmp_path / "a.mp4", _noise(40), fps=8, crf=10)
    assert len(read_frames(tmp_path / "a.mp4")) == 40


# --- videos written in chunks -----------------------------------------------------------------------------------------


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """Make every write of this process fail that lets a file grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _noise(frames: int, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Return frames that compress badly, so that the file is nearly as large as the frames."""
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("lengths", "fps"),
    [([1] * 41, 8), ([8, 8, 8, 8, 9], 30), ([40, 1], 1), ([1, 40], 24), ([13, 5, 23], 16), ([41], 25)],
)
def test_the_division_into_chunks_does_not_change_the_bytes(tmp_path: Path, lengths: list[int], fps: int) -> None:
    frames = _noise(41, 34, 18)
    write_video(tmp_path / "whole.mp4", frames, fps=fps, crf=16)
    chunks = np.split(frames, np.cumsum(lengths)[:-1])
    write_video(tmp_path / "chunks.mp4", iter(chunks), fps=fps, crf=16)
    with open_video(tmp_path / "written.mp4", fps=fps, crf=16) as video:
        for chunk in chunks:
            video.write(chunk)
    assert video.frames == 41
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, RuntimeError, ValueError])
@pytest.mark.parametrize("after", [0, 1, 30])
def test_an_interrupted_video_keeps_the_old_file(tmp_path: Path, stop: type[BaseException], after: int) -> None:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        yield from np.split(_noise(after), after) if after else ()
        unfinished = [path.name for path in tmp_path.iterdir() if path.name != "a.mp4"]
        assert unfinished == [f".a.mp4.tmp-{os.getpid()}"]
        raise stop

    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(stop):
        write_video(tmp_path / "a.mp4", chunks(), fps=8, crf=10)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.mp4": b"old"}


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "there are no frames; a video needs at least one"),
        ([_noise(2), _noise(2, 32, 34)], "frames are 32x34 after frames of 32x32"),
        ([_noise(2), _noise(2).astype(np.float32)], "frames are float32"),
        ([_noise(2), _noise(0)], "F at least 1"),
    ],
)
def test_chunks_of_a_wrong_shape_or_type_are_refused(
    tmp_path: Path, chunks: list[NDArray[np.uint8]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", iter(chunks), fps=8, crf=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [1, 8, 30])
def test_encoding_needs_the_memory_of_one_chunk(tmp_path: Path, fps: int) -> None:
    """Python and numpy need the same memory for 1600 frames as for 64 frames.

    The video file is larger than the limit.
    """
    peaks = []
    for frames in (64, 1600):
        tracemalloc.start()
        write_video(tmp_path / "a.mp4", (_noise(16, 64, 64) for _ in range(frames // 16)), fps=fps, crf=16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2**20 < (tmp_path / "a.mp4").stat().st_size


def test_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    kept = ["a.mp4", ".hidden.mp4", "b.mp4.tmp-1", "videos.json"]
    for name in [*kept, ".a.mp4.tmp-1", ".00000-seed0.mp4.tmp-99999"]:
        (tmp_path / name).write_bytes(b"x")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("room", [10, 100, 5_000, 40_000, 80_000])
def test_a_full_disk_causes_one_error_only(tmp_path: Path, room: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Closing the unfinished file must neither raise nor print another error."""
    written = 0

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            nonlocal written
            written += len(data)
            if written > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    noise = np.random.default_rng(0).integers(0, 255, (33, 64, 64, 3), dtype=np.uint8)

    def encode() -> None:
        with closing(VideoEncoder(tmp_path / "a.mp4", Full(), fps=8, crf=8)) as video:
            video.write(noise)
            video.finish()

    with pytest.raises(OSError, match="No space left"):
        encode()
    assert capfd.readouterr() == ("", "")
