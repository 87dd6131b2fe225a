"""Generated clips on disk: mp4s and their manifest rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from causvid.data.videos.video_writer import open_video
from causvid.runtime.shapes import VideoShape


def write_clips(
    folder: Path,
    captions: Sequence[str],
    frames: torch.Tensor | Iterable[torch.Tensor],
    video: VideoShape,
    crf: int,
    *,
    first: int = 0,
) -> list[dict[str, Any]]:
    """Write a batch of videos as mp4s and return their manifest rows.

    Args:
        folder: Folder of the mp4s; it is created.
        captions: The B captions of the videos.
        frames: uint8 [B, F, H, W, 3], or an iterable of such chunks. A chunk is encoded before the next one is asked
            for, so that the memory needed does not depend on the length of the videos.
        video: Height, width and frames per second.
        crf: Quality of x264; lower is better.
        first: Number of the first video in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first + offset:05d}.mp4" for offset in range(len(captions))]
    with ExitStack() as opened:
        files = [opened.enter_context(open_video(path, fps=video.fps, crf=crf)) for path in paths]
        for chunk in [frames] if isinstance(frames, torch.Tensor) else frames:
            for file, part in zip(files, chunk.cpu().numpy(), strict=True):
                file.write(part)
    return [
        {
            "id": path.stem,
            "path": path.name,
            "caption": caption,
            "source": "generated",
            "frames": file.frames,
            "height": video.height,
            "width": video.width,
            "fps": video.fps,
            "sha256": _sha256(path),
        }
        for path, caption, file in zip(paths, captions, files, strict=True)
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
