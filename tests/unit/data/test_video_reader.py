"""read_frames returns the frames that were written, and a ValueError names a file that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from causvid.data.videos.video_reader import _read_with_pyav, read_frames
from causvid.data.videos.video_writer import write_video


@pytest.fixture
def gradient() -> np.ndarray:
    """Return uint8 [9, 32, 48, 3] with smooth changes in space and time, which 4:2:0 and H.264 hardly alter."""
    frame, row, column = np.meshgrid(np.arange(9), np.arange(32), np.arange(48), indexing="ij")
    return np.stack([60 + 4 * row, 40 + 3 * column, 100 + 8 * frame], axis=-1).astype(np.uint8)


def test_frames_are_read_in_order_as_uint8_rgb(tmp_path: Path, gradient: np.ndarray) -> None:
    write_video(tmp_path / "a.mp4", gradient, fps=8, crf=4)
    frames = read_frames(tmp_path / "a.mp4")
    assert frames.dtype == np.uint8
    assert frames.shape == gradient.shape
    assert np.abs(frames.astype(int) - gradient).max() <= 8


@pytest.mark.parametrize("width", [16, 24, 32, 40, 48, 72])
def test_every_width_is_read_and_both_decoders_agree(tmp_path: Path, gradient: np.ndarray, width: int) -> None:
    write_video(tmp_path / "a.mp4", np.tile(gradient, (1, 1, 2, 1))[:, :, :width], fps=8, crf=4)
    frames = read_frames(tmp_path / "a.mp4")
    assert frames.shape == (9, 32, width, 3)
    assert np.array_equal(frames, _read_with_pyav(tmp_path / "a.mp4"))


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, gradient: np.ndarray, damage: str) -> None:
    path = tmp_path / "broken.mp4"
    write_video(path, gradient, fps=8, crf=4)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"not a video", "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        read_frames(path)
