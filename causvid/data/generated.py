"""Generated clips on disk: mp4s and their manifest rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from causvid.data.video_writer import write_video
from causvid.shapes import VideoShape


def write_clips(
    folder: Path, captions: Sequence[str], frames: torch.Tensor, video: VideoShape, crf: int, *, first: int = 0
) -> list[dict[str, Any]]:
    """Write uint8 ``frames`` [B, F, H, W, 3] as mp4s numbered from ``first``; returns their manifest rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for offset, (caption, clip) in enumerate(zip(captions, frames.cpu().numpy(), strict=True)):
        path = folder / f"{first + offset:05d}.mp4"
        write_video(path, clip, fps=video.fps, crf=crf)
        rows.append(
            {
                "id": path.stem,
                "path": path.name,
                "caption": caption,
                "source": "generated",
                "frames": len(clip),
                "height": video.height,
                "width": video.width,
                "fps": video.fps,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    return rows
