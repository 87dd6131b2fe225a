"""write_video: the same bytes every time, the whole file or none, colours that survive 4:2:0."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causvid.data import toy_world
from causvid.data.toy_world import BACKGROUNDS, COLOURS, Scene
from causvid.data.video_reader import read_frames
from causvid.data.video_writer import write_video
from causvid.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)


def _clip(colour: str = "red", background: str = "navy") -> np.ndarray:
    scene = Scene(shape="circle", colour=colour, direction="left", background=background)
    return toy_world.render(scene, video=VIDEO, start_xy=(20, 12), radius=6.0)


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    # Many clips, each written often: with x264's macroblock tree one in six differs from one time to the next.
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
def test_size_rate_and_count_come_back(
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
def test_the_toy_world_s_colours_survive(tmp_path: Path, colour: str, background: str) -> None:
    write_video(tmp_path / "a.mp4", _clip(colour, background), fps=8, crf=10)
    frame = read_frames(tmp_path / "a.mp4")[0].astype(int)
    assert np.abs(frame[12, 20] - COLOURS[colour]).max() <= 6
    assert np.abs(np.median(frame.reshape(-1, 3), axis=0) - BACKGROUNDS[background]).max() <= 3


def test_the_matrix_and_range_are_written_down(tmp_path: Path) -> None:
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
def test_frames_it_cannot_hold_are_refused(tmp_path: Path, frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, fps=8, crf=10)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")

    def full_disk(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_video(tmp_path / "a.mp4", _clip(), fps=8, crf=10)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
