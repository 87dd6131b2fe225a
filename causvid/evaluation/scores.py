"""Compute all scores of a folder of videos except the scores of VBench: judge, Frechet distance, flicker, drift.

For captions of the toy world, the reference set of the Frechet distance consists of renderings of the same captions.
For other captions, the reference set consists of real clips that are not among the scored videos.
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
    """Settings that all folders share.

    Attributes:
        reference: Folder of the real clips.
        toy_world: Whether the real clips show the toy world.
        video: Size of the clips.
        blocks: Frames of each block of a clip.
        count: Number of videos to score.
        crf: Quality of x264 with which the samples were encoded.
    """

    reference: Path
    toy_world: bool
    video: VideoShape
    blocks: Sequence[range]
    count: int
    crf: int


class Selected(NamedTuple):
    """The videos to score.

    Attributes:
        rows: Rows of the manifest.
        rendered: Whether the reference is rendered from the captions.
    """

    rows: Rows
    rendered: bool


def select(folder: Path, setting: Setting) -> Selected:
    """Select the first ``setting.count`` videos of ``folder``.

    If ``folder`` contains the real clips, and the second half of these clips is the reference set, at most the first
    half is selected.
    """
    listed = read_manifest(folder)
    rows = listed[: setting.count]
    rendered = setting.toy_world and all(judge.scene_of(row["caption"]) for row in rows)
    is_disjoint = rendered or folder != setting.reference
    return Selected(rows if is_disjoint else quality.halves(listed, setting.count)[0], rendered)


def score(folder: Path, net: FeatureNet, setting: Setting) -> dict[str, Any]:
    """Score the videos of ``folder`` that ``select`` returns.

    Returns:
        A dictionary:

        - ``n`` is the number of videos, and ``prompts`` is the number of different captions.
        - ``judge`` is the result of ``judge.averages``, ``table4`` is the result of ``table4.columns``, and
          ``intervals`` is the result of ``table4.intervals``. The three results are None if no caption describes the
          toy world.
        - The values of ``Ruler.measure`` are included.
        - ``flicker`` is the result of ``quality.mean_flicker``, and ``drift`` is the result of ``drift.drift``.
        - ``floors`` is the result of ``floors.floors`` if ``folder`` contains real clips of the toy world, else None.
    """
    (rows, rendered), clips = select(folder, setting), read_manifest(setting.reference)
    captions, videos = [row["caption"] for row in rows], Clips(folder, rows)
    reserved = quality.halves(clips, setting.count)[1]
    real = renderings(captions, setting.video, crf=setting.crf) if rendered else Clips(setting.reference, reserved)
    ruler = Ruler(net=net, reference=net(real), count=setting.count)
    examined = judge.examine_videos(videos, captions) if setting.toy_world else judge.Examined([], [])
    judged = judge.averages(examined, setting.blocks)
    return {
        "n": len(rows),
        "prompts": len(set(captions)),
        "judge": judged,
        "table4": table4.columns(judged) if judged else None,
        "intervals": table4.intervals([each.verdict for each in examined.examinations])
        if examined and judged
        else None,
        **ruler.measure(videos),
        "flicker": quality.mean_flicker(videos),
        "drift": drift.drift(folder, clips[0]["frames"], setting.blocks),
        "floors": floors(videos, captions, setting.blocks, ruler) if rendered and folder == setting.reference else None,
    }
