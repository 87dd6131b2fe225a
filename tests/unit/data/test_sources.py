"""Sources: what each leaves in data/raw, and what it says about input it cannot use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from causvid.data import manifest
from causvid.data.sources import DownloadConfig, folder_videos, toy_world_videos
from causvid.data.video_reader import read_frames
from causvid.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=5, fps=8)
TRAINING = Path("data/inputs/toy_world/training.txt")


def _config(**changes: Any) -> DownloadConfig:
    values: dict[str, Any] = {
        "source": "folder", "folder": Path("unused"), "captions": Path("unused"),
        "toy_world_captions": TRAINING, "toy_world_clips": 6,
        "mixkit_repo": "unused", "mixkit_revision": "main", "mixkit_files": "*.tar", "mixkit_captions": ("*.json",),
        "limit": None,
    }  # fmt: skip
    return DownloadConfig(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"limit": 0}, "download.limit is 0"), ({"source": "toy_world", "toy_world_clips": 0}, "toy_world_clips is 0")],
)
def test_a_config_that_asks_for_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)


# --- The toy world


def test_the_toy_world_is_written_alike_by_one_and_two_workers(tmp_path: Path) -> None:
    config = _config(source="toy_world")
    for workers in (1, 2):
        counts = toy_world_videos(tmp_path / str(workers), config, video=VIDEO, seed=0, workers=workers)
        assert counts == {"videos": 6, "distinct_captions": 6, "without_caption": 0}
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "12"
    )
    assert len(one) == 7
    assert one == two
    for row in manifest.read_manifest(tmp_path / "1"):
        assert read_frames(tmp_path / "1" / row["path"]).shape == (5, 32, 32, 3)
        assert row["caption"] in TRAINING.read_text(encoding="utf-8").splitlines()
        assert row["source"] == f"toy_world/{row['id']}"


def test_the_limit_holds_for_the_toy_world_too(tmp_path: Path) -> None:
    counts = toy_world_videos(tmp_path / "raw", _config(source="toy_world", limit=2), video=VIDEO, seed=0, workers=1)
    assert counts["videos"] == 2


def test_a_file_of_captions_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = _config(source="toy_world", toy_world_captions=tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="download.toy_world_captions is .*mine.txt, which does not exist"):
        toy_world_videos(tmp_path / "raw", config, video=VIDEO, seed=0, workers=1)


# --- A folder


def _folder(tmp_path: Path, *names: str) -> Path:
    """A folder of files that stand for videos: nothing in them is read at this point."""
    for name in names:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "mine"


def _take(folder: Path, captions: Path, **changes: Any) -> list[dict[str, Any]]:
    out = folder.parent / "raw"
    folder_videos(out, _config(**changes), folder=folder, captions=captions)
    return manifest.read_manifest(out)


def test_a_folder_with_a_captions_file(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "b.mp4", "deep/er/a.MOV", "note.txt", ".hidden.mp4", ".trash/c.mp4", "deep/x.json")
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"deep/er/a.MOV": "an  a\n", "./b.mp4": "a b é"}), encoding="utf-8")
    rows = _take(folder, captions)
    assert rows == [
        {"id": "000000", "path": "videos/000000.mp4", "caption": "a b é", "source": "b.mp4"},
        {"id": "000001", "path": "videos/000001.mov", "caption": "an a", "source": "deep/er/a.MOV"},
    ]
    copy = tmp_path / "raw" / rows[1]["path"]
    assert copy.read_bytes() == b"deep/er/a.MOV"
    assert not copy.is_symlink()
    assert copy.stat().st_ino != (folder / "deep/er/a.MOV").stat().st_ino  # an edit of one must not reach the other


def test_a_folder_with_sidecar_captions(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.mp4", "sub/b.webm")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfan a\r\nin two lines\r\n")
    (folder / "sub" / "b.txt").write_text("a b")
    rows = _take(folder, folder / "captions.json")
    assert [row["caption"] for row in rows] == ["an a in two lines", "a b"]


def test_the_limit_takes_the_first_by_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path, *(f"{name}.mp4" for name in "dbca"))
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"{name}.mp4": name for name in "abcd"}))
    assert [row["caption"] for row in _take(folder, captions, limit=2)] == ["a", "b"]


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere; there is no such folder"):
        _take(tmp_path / "nowhere", tmp_path / "captions.json")
    with pytest.raises(ValueError, match=r"mine; no video \(.*\.mp4.*\) lies in or below it"):
        _take(_folder(tmp_path, "notes.txt"), tmp_path / "captions.json")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"a.mp4": "a"}, "no caption for b.mp4; add"),
        ({"a.mp4": "a", "b.mp4": "  "}, "no caption for b.mp4"),
        ({"a.mp4": "a", "b.mp4": "b", "c.mp4": "c"}, "no video of the folder: c.mp4"),
        ({"a.mp4": "a", "b.mp4": 3}, "caption of b.mp4 is no text"),
        (["a.mp4"], "neither {path: caption} nor a list"),
        ("{", "is not JSON"),
    ],
)
def test_captions_that_do_not_match_are_named(tmp_path: Path, captions: Any, message: str) -> None:
    folder = _folder(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "captions.json"
    path.write_text(captions if isinstance(captions, str) else json.dumps(captions))
    with pytest.raises(ValueError, match=message):
        _take(folder, path)
    assert not (tmp_path / "raw").exists()


def test_many_missing_captions_are_counted(tmp_path: Path) -> None:
    folder = _folder(tmp_path, *(f"{index}.mp4" for index in range(8)))
    with pytest.raises(ValueError, match=r"beside 0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4 and 3 more"):
        _take(folder, folder / "captions.json")
