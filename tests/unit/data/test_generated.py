"""Generated frames become clips, and each clip has one row in the manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from causvid.data.generated import write_clips
from causvid.data.videos.video_reader import read_frames
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=16, width=24, frames=5, fps=8)


def frames(batch: int = 2) -> torch.Tensor:
    """Return frames of a single colour, which 4:2:0 and weak compression hardly change."""
    colours = torch.tensor([[200, 40, 40], [40, 60, 200]], dtype=torch.uint8)
    return colours[:batch, None, None, None].expand(-1, 5, 16, 24, -1).contiguous()


def test_clips_and_rows_agree(tmp_path: Path) -> None:
    rows = write_clips(tmp_path / "new" / "folder", ["red", "blue"], frames(), VIDEO, 10, first=7)
    assert [row["id"] for row in rows] == ["00007", "00008"]
    assert [row["caption"] for row in rows] == ["red", "blue"]
    for row, clip in zip(rows, frames().numpy(), strict=True):
        assert set(row) == {"id", "path", "caption", "source", "frames", "height", "width", "fps", "sha256"}
        path = tmp_path / "new" / "folder" / row["path"]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["frames"], row["height"], row["width"], row["fps"]) == (5, 16, 24, 8)
        decoded = read_frames(path)
        assert decoded.shape == clip.shape
        assert np.abs(decoded.astype(int) - clip).max() <= 8


def test_the_numbers_of_captions_and_videos_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_clips(tmp_path, ["red"], frames(), VIDEO, 10)
