"""The stage resample turns data/raw into data/clips and metrics, or prints one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.harness import tracking
from stages import resample
from tests.unit.data.source_files import gray_frames, write_source


@pytest.fixture(autouse=True)
def _no_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable tracking, and keep unfinished work in the temporary folder of the test."""

    @contextmanager
    def child_run(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(log_results=lambda _: None, log_metrics=lambda _: None)

    monkeypatch.setattr(tracking, "child_run", child_run)
    monkeypatch.setenv("CAUSVID_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a folder with three videos.

    One video is wide, one is square, and one has fewer than the 21 frames of the smoke profile.
    """
    folder = tmp_path / "raw"
    (folder / "videos").mkdir(parents=True)
    rows = []
    for index, (name, count, width) in enumerate((("wide", 30, 80), ("square", 30, 48), ("short", 9, 48))):
        path = f"videos/{index:06d}.mp4"
        write_source(folder / path, gray_frames(count, 48, width), fps=8)
        rows.append({"id": f"{index:06d}", "path": path, "caption": f"a {name} one", "source": f"{name}.mp4"})
    manifest.write_rows(folder / manifest.NAME, rows)
    return folder


def _run(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    yaml = YAML()
    values = yaml.load(Path("profiles/smoke.yaml"))
    values["resample"].update(changes)
    yaml.dump(values, tmp_path / "params.yaml")
    resample.main(
        raw=tmp_path / "raw",
        out=tmp_path / "clips",
        metrics=tmp_path / "metrics.json",
        params=tmp_path / "params.yaml",
    )
    metrics: dict[str, Any] = json.loads((tmp_path / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize(
    ("aspect", "kept", "codes"),
    [
        ("crop", ["wide.mp4", "square.mp4"], {"short.mp4": "too_short"}),
        ("squeeze", ["square.mp4"], {"wide.mp4": "wrong_aspect", "short.mp4": "too_short"}),
    ],
)
def test_each_source_video_becomes_a_clip_or_has_a_reason(
    tmp_path: Path, raw: Path, aspect: str, kept: list[str], codes: dict[str, str]
) -> None:
    metrics = _run(tmp_path, aspect=aspect)
    rows = manifest.read_manifest(tmp_path / "clips")
    rejected = manifest.read_rows(tmp_path / "clips" / "rejected.jsonl")
    assert [row["source"] for row in rows] == kept
    assert {row["source"]: row["code"] for row in rejected} == codes
    assert (metrics["kept"], metrics["rejected"]) == (len(kept), len(codes))
    assert metrics["rejected_by_code"] == dict.fromkeys(sorted(codes.values()), 1)
    for row in rows:
        assert read_frames(tmp_path / "clips" / row["path"]).shape == (21, 32, 32, 3)


def test_no_usable_video_is_one_sentence(tmp_path: Path, raw: Path) -> None:
    rows = manifest.read_manifest(raw)
    manifest.write_rows(raw / manifest.NAME, [row for row in rows if row["source"] == "short.mp4"])
    with pytest.raises(SystemExit, match=r"resample: none of the 1 videos .* too_short .* needs 21"):
        _run(tmp_path)
    assert not (tmp_path / "clips").exists()


def test_an_unknown_aspect_rule_is_named(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(SystemExit, match=r"resample\.aspect.*'crop' or 'squeeze'.*stretch"):
        _run(tmp_path, aspect="stretch")
