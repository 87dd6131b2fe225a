from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from causvid import params
from causvid.data import toy_world
from causvid.data.manifest import NAME, write_rows
from causvid.data.video_writer import write_video
from causvid.runtime import tracking
from causvid.shapes import VideoShape
from stages import evaluate

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)


class NoTracker:
    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Nothing is tracked here."""


@contextmanager
def no_child_run(*_: Any) -> Iterator[NoTracker]:
    yield NoTracker()


def write_folder(folder: Path, count: int, *, first: int = 0, frames: int = VIDEO.frames, dim: float = 1.0) -> None:
    folder.mkdir(parents=True)
    video = VideoShape(height=32, width=32, frames=frames, fps=8)
    rows = []
    for index, caption in enumerate(toy_world.clip_captions(first + count, seed=0)[first:], start=first):
        clip = toy_world.clip_frames(caption, index, video=video, seed=0)
        write_video(folder / f"{index:03d}.mp4", (clip * dim).astype(np.uint8), fps=8, crf=10)
        rows.append({"id": f"{index:03d}", "path": f"{index:03d}.mp4", "caption": caption, "frames": frames})
    write_rows(folder / NAME, rows)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the stage on a folder, in a project of its own with eight evaluation samples and no VBench."""
    for name in ("stages", "causvid", "requirements"):
        (tmp_path / name).symlink_to(params.ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(tracking, "child_run", no_child_run)

    def evaluate_folder(videos: str, source: str = "toy_world") -> dict[str, Any]:
        yaml = YAML(typ="safe")
        values = yaml.load(params.PROFILES / "laptop.yaml")
        values["download"]["source"], values["sample"]["prompts"] = source, 8
        values["evaluate"]["vbench_python"] = "nowhere/python"
        yaml.dump(values, Path("params.yaml"))
        metrics = Path("reports/evaluate/x.json")
        evaluate.main(
            videos=Path(videos), item="x", reference=Path("clips"), metrics=metrics, params=Path("params.yaml")
        )
        found: dict[str, Any] = json.loads(metrics.read_text())
        return found

    return evaluate_folder


def test_real_clips_set_the_ceiling_and_the_floor(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 20)
    found = run("clips")
    assert set(found) == {"n", "judge", "frechet_distance", "flicker", "drift", "vbench", "key"}
    assert found["n"] == found["judge"]["n"] == 8
    assert all(found["judge"][name] == 1 for name in ("colour", "background", "shape", "motion"))
    assert found["frechet_distance"] > 0  # the other eight are other clips
    assert 0 < found["flicker"] < 0.2
    assert found["drift"] is None
    assert found["vbench"]["version"] is None
    assert found["vbench"]["scores"] == {}
    assert "make vbench-env" in found["vbench"]["skipped"]["temporal_flickering"]


def test_samples_are_compared_with_clips_they_do_not_hold(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 20)
    write_folder(tmp_path / "samples", 10, first=40, dim=0.5)
    write_folder(tmp_path / "samples" / "rollouts", 2, frames=3 * VIDEO.frames)
    found = run("samples")
    assert found["n"] == 8
    assert found["drift"]["n"] == 2
    assert found["drift"]["windows"] == 3
    assert found["frechet_distance"] > 2 * run("clips")["frechet_distance"]


def test_other_sources_have_no_judge(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 4)
    found = run("clips", source="folder")
    assert found["judge"] is None
    assert found["n"] == 2
    assert found["frechet_distance"] is not None


def test_a_single_clip_is_scored_without_a_distance(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 1)
    found = run("clips")
    assert found["n"] == 1
    assert found["frechet_distance"] is None


def test_same_inputs_same_bytes(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 6)
    run("clips")
    first = Path("reports/evaluate/x.json").read_bytes()
    run("clips")
    assert Path("reports/evaluate/x.json").read_bytes() == first


def test_a_folder_without_manifest_ends_with_one_sentence(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 4)
    (tmp_path / "samples").mkdir()
    with pytest.raises(SystemExit, match=r"^evaluate: samples has no manifest"):
        run("samples")
