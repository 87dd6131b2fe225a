"""The stage evaluate scores a folder of videos, or prints one sentence."""

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
from causvid.data.sources import toy_world
from causvid.data.videos.manifest import NAME, read_manifest, write_rows
from causvid.data.videos.video_writer import write_video
from causvid.harness import tracking
from causvid.runtime.shapes import VideoShape
from stages import evaluate

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)


class NoTracker:
    def log_results(self, results: dict[str, Any]) -> None:
        """Discard the results."""

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Discard the metrics."""


@contextmanager
def no_child_run(*_: Any) -> Iterator[NoTracker]:
    yield NoTracker()


def write_folder(folder: Path, count: int, *, first: int = 0, frames: int = VIDEO.frames, dim: float = 1.0) -> None:
    folder.mkdir(parents=True)
    video = VideoShape(height=32, width=32, frames=frames, fps=8)
    rows = []
    for index, caption in enumerate(
        toy_world.clip_captions(toy_world.captions(), first + count, seed=0)[first:], start=first
    ):
        clip = toy_world.clip_frames(caption, index, video=video, seed=0)
        write_video(folder / f"{index:03d}.mp4", (clip * dim).astype(np.uint8), fps=8, crf=10)
        rows.append({"id": f"{index:03d}", "path": f"{index:03d}.mp4", "caption": caption, "frames": frames})
    write_rows(folder / NAME, rows)


@pytest.fixture
def run(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the stage on a folder, in a separate project.

    The project has 20 samples, and VBench is disabled.
    """
    for name in ("stages", "causvid", "requirements"):
        (tmp_path / name).symlink_to(params.ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(tracking, "child_run", no_child_run)

    def evaluate_folder(videos: str, source: str = "toy_world", vae: Path = world / "vae") -> dict[str, Any]:
        yaml = YAML(typ="safe")
        values = yaml.load(params.PROFILES / "laptop.yaml")
        values["download"]["source"], values["sample"]["videos"] = source, 20
        values["video"]["frames"], values["model"]["frames_per_block"] = VIDEO.frames, 1
        values["evaluate"] |= {"vbench_python": "nowhere/python", "feature_vae": str(vae)}
        yaml.dump(values, Path("params.yaml"))
        metrics = Path("reports/evaluate/x.json")
        evaluate.main(
            videos=Path(videos),
            item="x",
            reference=Path("clips"),
            metrics=metrics,
            params=Path("params.yaml"),
        )
        found: dict[str, Any] = json.loads(metrics.read_text())
        return found

    return evaluate_folder


FRECHET = {"frechet_distance", "frechet_interval", "frechet_n", "frechet_note"}


def test_real_clips_set_the_ceiling_and_the_floors(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 24)
    found = run("clips")
    assert set(found) == {
        "n",
        "prompts",
        "judge",
        "table4",
        "intervals",
        *FRECHET,
        "flicker",
        "drift",
        "floors",
        "vbench",
        "key",
    }
    assert found["n"] == found["judge"]["n"] == found["frechet_n"] == 20
    assert found["prompts"] == 20
    assert all(found["judge"][name] == 1 for name in ("colour", "background", "shape", "motion"))
    assert [block["velocity"] for block in found["judge"]["blocks"]] == [None, 1, 1]
    assert found["table4"]["text"] == 100
    assert found["table4"]["temporal"] > 95
    assert found["table4"]["diversity"] is None  # every caption appears once
    low, high = found["frechet_interval"]
    assert 0 <= low < found["frechet_distance"] < high  # the clips of the reference have other start positions
    assert found["frechet_note"] is None
    assert found["floors"]["vanished"]["judge"]["seen"] == 0
    assert all(found["floors"][name]["frechet_distance"] > 2 * high for name in ("frozen", "blurred", "noise"))
    assert 0 < found["flicker"] < 0.2
    assert found["drift"] is None
    assert found["vbench"]["version"] is None
    assert found["vbench"]["scores"] == {}
    assert "make vbench-env" in found["vbench"]["skipped"]["temporal_flickering"]


def test_samples_are_compared_with_their_captions_rendered(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 1)  # the stage uses only the number of frames of these clips
    write_folder(tmp_path / "samples", 24, first=40)
    write_folder(tmp_path / "dim", 24, first=40, dim=0.5)
    write_folder(tmp_path / "dim" / "rollouts", 2, frames=3 * VIDEO.frames)
    clean, dim = run("samples"), run("dim")
    assert dim["n"] == dim["frechet_n"] == 20
    assert dim["frechet_distance"] > 2 * clean["frechet_distance"]
    assert dim["floors"] is None
    assert dim["drift"]["n"] == 2
    assert dim["drift"]["windows"] == 3
    assert dim["drift"]["judge"][0]["temporal_psnr"] > 25


def test_other_sources_are_compared_with_other_real_clips(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 40)
    found = run("clips", source="folder")
    assert found["judge"] is found["table4"] is found["floors"] is None
    assert found["n"] == found["frechet_n"] == 20
    assert found["frechet_distance"] > 0


def test_captions_that_are_not_of_the_toy_world_are_scored_without_the_judge(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    write_folder(tmp_path / "clips", 40)
    write_folder(tmp_path / "samples", 20)
    rows = [{**row, "caption": "a dog"} for row in read_manifest(tmp_path / "samples")]
    write_rows(tmp_path / "samples" / NAME, rows)
    found = run("samples")
    assert found["judge"] is found["table4"] is None
    assert found["frechet_n"] == 20
    assert found["frechet_distance"] is not None


@pytest.mark.parametrize(("source", "scored"), [("toy_world", 6), ("folder", 3)])
def test_too_few_clips_are_scored_without_a_frechet_distance(
    tmp_path: Path, run: Callable[..., dict[str, Any]], source: str, scored: int
) -> None:
    write_folder(tmp_path / "clips", 6)
    found = run("clips", source=source)
    assert found["n"] == scored
    assert found["frechet_distance"] is found["frechet_interval"] is None
    assert f"{scored} of 20 videos" in found["frechet_note"]


def test_a_single_clip_can_be_scored(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 1)
    for source in ("toy_world", "folder"):
        assert run("clips", source=source)["n"] == 1


def test_a_missing_feature_network_ends_with_one_sentence(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_folder(tmp_path / "clips", 4)
    with pytest.raises(SystemExit, match=r"^evaluate: evaluate.feature_vae is nowhere, which does not exist"):
        run("clips", vae=Path("nowhere"))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
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
