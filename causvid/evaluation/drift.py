"""Measure how the quality of a video changes along a rollout, with the same scores in each of K windows.

A window has as many frames as a training clip. Shapes: F frames of a rollout, H and W in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causvid.data.videos.manifest import NAME, read_manifest
from causvid.data.videos.video_reader import read_frames
from causvid.evaluation import judge

FOLDER = "rollouts"  # subfolder of a folder of samples, with a separate manifest


def drift(folder: Path, window_frames: int, clip_blocks: Sequence[range]) -> dict[str, Any] | None:
    """Score the rollouts of a folder of samples in every window.

    Args:
        folder: Folder of samples. The rollouts are in the subfolder ``FOLDER`` of this folder.
        window_frames: Number of frames in a window, as in a training clip.
        clip_blocks: Frames of each block of a training clip. The blocks of a rollout after the last block of the clip
            have the length of this last block.

    Returns:
        None if there are no rollouts or if a rollout has only one window. Otherwise, a dictionary:

        - ``n`` is the number of rollouts.
        - ``windows`` is the number K of windows in a rollout.
        - ``window_frames`` is the number of frames in a window.
        - ``statistics`` maps each of brightness, saturation and sharpness to {"windows": [K means over the rollouts],
          "change": last mean minus first mean}.
        - ``judge`` is a list of K averages of the judge's scores; None if no caption describes the toy world.
        - ``blocks`` is a list with the result of ``judge.over_block`` for each block of a rollout; None if no caption
          describes the toy world.

    Raises:
        ValueError: The rollouts differ in their number of windows.
    """
    if not (folder / FOLDER / NAME).is_file():
        return None
    rows = read_manifest(folder / FOLDER)
    counts = {len(window_starts(row["frames"], window_frames)) for row in rows}
    if len(counts) > 1:
        lengths = ", ".join(str(length) for length in sorted({row["frames"] for row in rows}))
        raise ValueError(f"{folder / FOLDER}: rollouts of {lengths} frames; generate them again with one length")
    (windows,) = counts
    if windows < 2:
        return None
    measured: list[list[dict[str, float]]] = [[] for _ in range(windows)]
    verdicts: list[list[judge.Verdict | None]] = [[] for _ in range(windows)]
    examined: list[judge.Examination] = []
    for row in rows:
        frames = read_frames(folder / FOLDER / row["path"])
        for number, start in enumerate(window_starts(len(frames), window_frames)):
            part = frames[start : start + window_frames]
            measured[number].append(statistics(part))
            verdicts[number].append(judge.judge(part, row["caption"]))
        if scene := judge.scene_of(row["caption"]):
            examined.append(judge.examine(frames, scene))
    judged = [judge.average(window) for window in verdicts]
    return {
        "n": len(rows),
        "windows": windows,
        "window_frames": window_frames,
        "statistics": {name: _over_windows(measured, name) for name in measured[0][0]},
        "judge": judged if None not in judged else None,
        "blocks": [judge.over_block(examined, block) for block in blocks_of(rows[0]["frames"], clip_blocks)]
        if examined
        else None,
    }


def window_starts(frames: int, window_frames: int) -> list[int]:
    """Return the index of the first frame of each window. The windows are spread evenly over the rollout.

    If the length of the rollout is not a multiple of ``window_frames`` (a causal VAE needs 4n + 1 frames), windows
    overlap by a few frames.
    """
    count = max(1, round(frames / window_frames))
    return [round(float(start)) for start in np.linspace(0, max(0, frames - window_frames), count)]


def blocks_of(frames: int, clip_blocks: Sequence[range]) -> list[range]:
    """Return the frames of each block of a rollout of ``frames`` frames.

    The first block is as long as the first block of a clip, which has fewer frames than later blocks. All other blocks
    are as long as the last block of a clip. An incomplete block at the end is omitted.
    """
    first, later = len(clip_blocks[0]), len(clip_blocks[-1])
    return [range(first), *(range(start, start + later) for start in range(first, frames - later + 1, later))]


def statistics(frames: NDArray[np.uint8]) -> dict[str, float]:
    """Measure the properties of a video, uint8 [F, H, W, 3], that usually drift first.

    Returns:
        Three means over all pixels, as shares of full brightness. ``brightness`` is the mean of the colour channels.
        ``saturation`` is the mean difference of the largest and the smallest channel. ``sharpness`` is the mean
        absolute difference between a pixel and the pixels to the right and below.
    """
    values = frames.astype(np.float32) / 255
    edges = [np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)]
    return {
        "brightness": float(values.mean()),
        "saturation": float((values.max(axis=-1) - values.min(axis=-1)).mean()),
        "sharpness": float(sum(edges) / len(edges)),
    }


def _over_windows(measured: list[list[dict[str, float]]], name: str) -> dict[str, Any]:
    means = [sum(values[name] for values in window) / len(window) for window in measured]
    return {"windows": means, "change": means[-1] - means[0]}
