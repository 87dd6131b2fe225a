"""Write generated clips as mp4 files, and build their manifest rows."""

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
    """Write a batch of videos as mp4 files.

    Args:
        folder: Folder of the mp4 files; it is created if it does not exist.
        captions: The B captions of the videos.
        frames: uint8 [B, F, H, W, 3], or an iterable of such chunks. Each chunk is encoded before the next one is
            requested, so that memory use does not depend on the length of the videos.
        video: Height, width and frames per second of the videos.
        crf: Quality of x264; lower is better.
        first: Number of the first video. Video n is written to ``<n>.mp4``, where n has five digits.

    Returns:
        The manifest rows: id, path, caption, source, frames, height, width, fps and sha256.
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
