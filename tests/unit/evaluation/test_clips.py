from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from causvid.data.sources import toy_world
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.evaluation import clips as clips_module
from causvid.evaluation import judge
from causvid.evaluation.clips import Clips, renderings
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)


def test_clips_are_read_in_the_order_of_their_rows(tmp_path: Path) -> None:
    for k in range(3):
        write_video(tmp_path / f"{k}.mp4", np.full((2, 32, 32, 3), 60 * k, dtype=np.uint8), fps=8, crf=10)
    clips = Clips(tmp_path, [{"path": f"{k}.mp4"} for k in (2, 0, 1)])
    assert len(clips) == 3
    assert [round(float(frames.mean()), -1) for frames in clips] == [120, 0, 60]
    assert [frames.shape for frames in clips[:2]] == [(2, 32, 32, 3)] * 2
    assert np.array_equal(clips[:2][1], clips[1])


@pytest.mark.parametrize("limit", [0, 3 * 2 * 32 * 32 * 3])
def test_a_small_number_of_small_clips_is_decoded_once(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(clips_module, "KEPT_BYTES", limit)
    monkeypatch.setattr(clips_module, "read_frames", lambda path: read.append(path) or read_frames(path))
    for k in range(3):
        write_video(tmp_path / f"{k}.mp4", np.full((2, 32, 32, 3), 60 * k, dtype=np.uint8), fps=8, crf=10)
    clips = Clips(tmp_path, [{"path": f"{k}.mp4"} for k in range(3)])
    assert all(np.array_equal(a, b) for a, b in zip(clips, clips[:], strict=True))
    assert len(read) == (3 if limit else 6)
    if limit:
        with pytest.raises(ValueError, match="read-only"):
            clips[0][:] = 0


def test_renderings_agree_with_their_captions_and_differ_from_each_other() -> None:
    captions = toy_world.captions()[::37] * 2
    videos = list(renderings(captions, VIDEO, crf=10))
    for caption, frames in zip(captions, videos, strict=True):
        verdict = judge.judge(frames, caption)
        assert verdict is not None
        assert verdict.colour
        assert verdict.shape
        assert verdict.velocity == 1
    half = len(captions) // 2
    apart = [np.abs(a.astype(float) - b).mean() for a, b in zip(videos[:half], videos[half:], strict=True)]
    assert np.mean(apart) > 10


def test_renderings_are_reproducible_and_differ_from_training_clips() -> None:
    captions = toy_world.captions()[:3]
    once, again = (list(renderings(captions, VIDEO, crf=10)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    for index, (caption, frames) in enumerate(zip(captions, once, strict=True)):
        assert np.abs(toy_world.clip_frames(caption, index, video=VIDEO, seed=0) - frames.astype(float)).mean() > 5


def test_captions_outside_the_toy_world_are_refused() -> None:
    with pytest.raises(ValueError, match="not a caption of the toy world"):
        list(renderings(["a dog"], VIDEO, crf=10))
