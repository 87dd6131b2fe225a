"""The stage download writes data/raw and its metrics from params, or prints one sentence."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid.data.sources import local as sources
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.harness import tracking
from stages import download
from tests.unit.data.source_files import real_clips


@pytest.fixture(autouse=True)
def _no_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable tracking, and keep unfinished work in the temporary folder of the test."""

    @contextmanager
    def child_run(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(log_results=lambda _: None, log_metrics=lambda _: None)

    monkeypatch.setattr(tracking, "child_run", child_run)
    monkeypatch.setenv("CAUSVID_WORK_DIR", str(tmp_path / "work"))


def _run(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Run the stage on the smoke profile with ``changes``, and return its metrics."""
    yaml = YAML()
    values = yaml.load(Path("profiles/smoke.yaml"))
    for dotted, value in changes.items():
        section, name = dotted.split("__")
        values[section][name] = value
    yaml.dump(values, tmp_path / "params.yaml")
    download.main(out=tmp_path / "raw", metrics=tmp_path / "metrics.json", params=tmp_path / "params.yaml")
    metrics: dict[str, Any] = json.loads((tmp_path / "metrics.json").read_text())
    return metrics


def test_the_toy_world_at_the_profile_s_size(tmp_path: Path) -> None:
    metrics = _run(tmp_path, download__toy_world_clips=3, compute__workers=1)
    assert metrics["key"]
    assert {name: value for name, value in metrics.items() if name != "key"} == {
        "source": "toy_world",
        "videos": 3,
        "distinct_captions": 3,
        "without_caption": 0,
    }
    rows = manifest.read_manifest(tmp_path / "raw")
    assert [row["id"] for row in rows] == ["000000", "000001", "000002"]
    assert read_frames(tmp_path / "raw" / rows[0]["path"]).shape == (21, 32, 32, 3)


def test_a_folder_of_real_clips(tmp_path: Path) -> None:
    captions = {path.name: f"a clip named {path.stem}" for path in real_clips().glob("*.mp4")}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    metrics = _run(
        tmp_path,
        download__source="folder",
        download__folder=str(real_clips()),
        download__captions=str(tmp_path / "captions.json"),
    )
    assert (metrics["source"], metrics["videos"]) == ("folder", 4)
    assert {row["source"]: row["caption"] for row in manifest.read_manifest(tmp_path / "raw")} == captions


@pytest.mark.parametrize("broken", ["half \ud83d", "\udc00", "byte \udcff"])
def test_a_caption_that_utf8_cannot_hold_is_counted_and_the_others_are_used(tmp_path: Path, broken: str) -> None:
    captions = {path.name: f"a clip named {path.stem}" for path in real_clips().glob("*.mp4")}
    first = min(captions)
    (tmp_path / "captions.json").write_text(json.dumps(captions | {first: broken}))
    metrics = _run(
        tmp_path,
        download__source="folder",
        download__folder=str(real_clips()),
        download__captions=str(tmp_path / "captions.json"),
    )
    assert (metrics["videos"], metrics["passed_over"]) == (3, 1)
    assert first not in {row["source"] for row in manifest.read_manifest(tmp_path / "raw")}


def test_a_second_run_replaces_the_first_completely(tmp_path: Path) -> None:
    _run(tmp_path, download__toy_world_clips=3)
    (tmp_path / "raw" / "leftover").touch()
    _run(tmp_path, download__toy_world_clips=2)
    assert len(list((tmp_path / "raw" / "videos").iterdir())) == 2
    assert not (tmp_path / "raw" / "leftover").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"download__source": "youtube"}, "download.*source.*'toy_world', 'folder' or 'mixkit'.*youtube"),
        ({"download__toy_world_captions": "nowhere.txt"}, "download.toy_world_captions is nowhere.txt, which does not"),
        ({"download__toy_world_clips": 0}, "download.toy_world_clips is 0; it must be at least 1"),
    ],
)
def test_invalid_params_are_one_sentence_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=f"download: .*{message}"):
        _run(tmp_path, **changes)
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "metrics.json").exists()


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit, match=r"download: download.folder is .*mine, which has no video \(.*\); name"):
        _run(tmp_path, download__source="folder", download__folder=str(tmp_path / "mine"))


def test_a_full_disk_is_one_sentence_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "write_video", full)
    with pytest.raises(SystemExit, match="download: the disk is full"):
        _run(tmp_path, download__toy_world_clips=2)
    assert not (tmp_path / "raw").exists()
