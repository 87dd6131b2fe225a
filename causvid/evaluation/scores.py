"""Every measure of one folder of videos that needs no other environment: judge, Frechet distance, flicker, drift.

The toy world can be rendered, so there the distance is to what a perfect model would make of the very same captions.
Elsewhere it is to real clips, never the ones scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from causvid.data.videos.manifest import read_manifest
from causvid.evaluation import drift, judge, quality, table4
from causvid.evaluation.clips import Clips, renderings
from causvid.evaluation.features import FeatureNet
from causvid.evaluation.floors import floors
from causvid.evaluation.frechet import Ruler
from causvid.runtime.shapes import VideoShape

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for every folder.

    reference: folder of real clips; toy_world: whether they are of that world; video: their size; blocks: frames of
    each block of a clip; count: videos to score; crf: the samples' x264 quality.
    """

    reference: Path
    toy_world: bool
    video: VideoShape
    blocks: Sequence[range]
    count: int
    crf: int


class Selected(NamedTuple):
    """Rows of the videos to score, and whether what their captions mean can be rendered."""

    rows: Rows
    rendered: bool


def select(folder: Path, setting: Setting) -> Selected:
    """The first ``setting.count`` videos of ``folder``.

    Of the real clips, where the distance is to real ones, the first half of them at most: it is to the others.
    """
    listed = read_manifest(folder)
    rows = listed[: setting.count]
    rendered = setting.toy_world and all(judge.scene_of(row["caption"]) for row in rows)
    whole = rendered or folder != setting.reference
    return Selected(rows if whole else quality.halves(listed, setting.count)[0], rendered)


def score(folder: Path, net: FeatureNet, setting: Setting) -> dict[str, Any]:
    """Scores of the videos of ``folder`` that ``select`` takes.

    Returns ``n`` and of how many different ``prompts``; ``judge`` (of ``judge.judge_videos``) and ``table4``,
    None where no caption is of the toy world; the Frechet distance (of ``Ruler.measure``); ``flicker``; ``drift``;
    ``floors`` of the real clips themselves where they are of the toy world, else None.
    """
    (rows, rendered), clips = select(folder, setting), read_manifest(setting.reference)
    captions, videos = [row["caption"] for row in rows], Clips(folder, rows)
    reserved = quality.halves(clips, setting.count)[1]
    real = renderings(captions, setting.video, crf=setting.crf) if rendered else Clips(setting.reference, reserved)
    ruler = Ruler(net=net, reference=net(real), count=setting.count)
    judged = judge.judge_videos(videos, captions, setting.blocks) if setting.toy_world else None
    return {
        "n": len(rows),
        "prompts": len(set(captions)),
        "judge": judged,
        "table4": table4.columns(judged) if judged else None,
        **ruler.measure(videos),
        "flicker": quality.mean_flicker(videos),
        "drift": drift.drift(folder, clips[0]["frames"], setting.blocks),
        "floors": floors(videos, captions, setting.blocks, ruler) if rendered and folder == setting.reference else None,
    }
