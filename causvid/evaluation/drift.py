"""How a long rollout changes on its way: the same scores for every window of the training length.

Shapes: F frames of a rollout, H and W in pixels, K windows.
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

FOLDER = "rollouts"  # inside a folder of samples, with a manifest of its own


def drift(folder: Path, window_frames: int, clip_blocks: Sequence[range]) -> dict[str, Any] | None:
    """Scores of the rollouts below ``folder`` window by window; None when there are none, or none of two windows.

    ``clip_blocks`` are the frames of each block of a training clip; a rollout goes on with blocks as long as the last.

    Returns ``n`` rollouts; ``windows`` K; ``window_frames``; ``statistics``: brightness, saturation and sharpness, each
    {"windows": [K means over the rollouts], "change": last less first}; ``judge``: K averages of the toy world's judge,
    or None where no caption is of that world; ``blocks``: its ``over_block`` for each block of the
    rollouts, or None likewise. Raises ValueError when the rollouts differ in their number of windows.
    """
    if not (folder / FOLDER / NAME).is_file():
        return None
    rows = read_manifest(folder / FOLDER)
    counts = {len(window_starts(row["frames"], window_frames)) for row in rows}
    if len(counts) > 1:
        lengths = ", ".join(str(length) for length in sorted({row["frames"] for row in rows}))
        raise ValueError(f"{folder / FOLDER}: rollouts of {lengths} frames; make them of one length again")
    (windows,) = counts
    if windows < 2:
        return None
    found: list[list[dict[str, float]]] = [[] for _ in range(windows)]
    verdicts: list[list[judge.Verdict | None]] = [[] for _ in range(windows)]
    whole: list[judge.Examination] = []
    for row in rows:
        frames = read_frames(folder / FOLDER / row["path"])
        for number, start in enumerate(window_starts(len(frames), window_frames)):
            part = frames[start : start + window_frames]
            found[number].append(statistics(part))
            verdicts[number].append(judge.judge(part, row["caption"]))
        if scene := judge.scene_of(row["caption"]):
            whole.append(judge.examine(frames, scene))
    judged = [judge.average(window) for window in verdicts]
    return {
        "n": len(rows),
        "windows": windows,
        "window_frames": window_frames,
        "statistics": {name: _over_windows(found, name) for name in found[0][0]},
        "judge": judged if None not in judged else None,
        "blocks": [judge.over_block(whole, block) for block in blocks_of(rows[0]["frames"], clip_blocks)]
        if whole
        else None,
    }


def window_starts(frames: int, window_frames: int) -> list[int]:
    """First frames of a rollout's windows: as many as fit best, evenly spread, the last one ending with the rollout.

    A rollout that is a few frames short of whole windows (causal VAEs keep 4n+1) has windows that share those frames.
    """
    count = max(1, round(frames / window_frames))
    return [round(float(start)) for start in np.linspace(0, max(0, frames - window_frames), count)]


def blocks_of(frames: int, clip_blocks: Sequence[range]) -> list[range]:
    """The frames of each block of a rollout: a clip's first block, then as many like the clip's last one as fit.

    The rollout's first block shows fewer frames than the others; at its end a block that was cut is left out.
    """
    first, later = len(clip_blocks[0]), len(clip_blocks[-1])
    return [range(first), *(range(start, start + later) for start in range(first, frames - later + 1, later))]


def statistics(frames: NDArray[np.uint8]) -> dict[str, float]:
    """What drifts first in a rollout, of uint8 [F, H, W, 3], means over all pixels as shares of full brightness.

    brightness: of the colour channels; saturation: largest less smallest channel; sharpness: absolute difference to the
    neighbours on the right and below.
    """
    values = frames.astype(np.float32) / 255
    edges = [np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)]
    return {
        "brightness": float(values.mean()),
        "saturation": float((values.max(axis=-1) - values.min(axis=-1)).mean()),
        "sharpness": float(sum(edges) / len(edges)),
    }


def _over_windows(found: list[list[dict[str, float]]], name: str) -> dict[str, Any]:
    means = [sum(values[name] for values in window) / len(window) for window in found]
    return {"windows": means, "change": means[-1] - means[0]}
