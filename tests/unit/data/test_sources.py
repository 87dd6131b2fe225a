"""Sources: what each leaves in data/raw, and what it says about input it cannot use."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from causvid.data import manifest
from causvid.data.sources import DownloadConfig, folder_videos, mixkit_videos, toy_world_videos
from causvid.data.video_reader import read_frames
from causvid.shapes import VideoShape
from tests.unit.data.hub_stand_in import COMMIT, REPO, StandIn, serve

VIDEO = VideoShape(height=32, width=32, frames=5, fps=8)
TRAINING = Path("data/inputs/toy_world/training.txt")


def _config(**changes: Any) -> DownloadConfig:
    values: dict[str, Any] = {
        "source": "folder", "folder": Path("unused"), "captions": Path("unused"),
        "toy_world_captions": TRAINING, "toy_world_clips": 6,
        "mixkit_repo": REPO, "mixkit_revision": "main", "mixkit_folder": "all_mixkit", "limit": None,
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


# --- MixKit


def _tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def _link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


ABSOLUTE = f"{os.sep}absolute.mp4"
HOSTILE = _tar(
    ("../out.mp4", b"outside"),
    (ABSOLUTE, b"outside"),
    _link("link.mp4", "/etc/passwd", tarfile.SYMTYPE),
    _link("hard.mp4", "../../secret", tarfile.LNKTYPE),
    _link("device.mp4", "", tarfile.CHRTYPE),
    ("readme.txt", b"no video"),
    ("honest.mp4", b"honest"),
    ("honest.mp4", b"again"),
)
FISH = _tar(("Fish/a.mp4", b"a"), ("mnt/Fish/b.mov", b"b"), ("Fish/silent.mp4", b"silent"))
ANNOTATIONS = [
    {"path": "Fish/a.mp4", "frame_idx": "65:130", "cap": ["a later stretch"]},
    {"path": "Fish/a.mp4", "frame_idx": "0:65", "cap": ["the  beginning", "another"]},
    {"path": "Fish/b.mov", "frame_idx": "0:513", "cap": "a plain string"},
]
CAPTIONS = {"anno_jsons/video_mixkit_65f.json": json.dumps(ANNOTATIONS).encode()}


def _fetch(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return mixkit_videos(tmp_path / "raw", _config(source="mixkit", **changes), hub=tmp_path / "hub")


@contextmanager
def _hub(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], announced: dict[str, bytes] | None = None
) -> Iterator[StandIn]:
    """The stand-in, and this process's client talking to it: it has read HF_ENDPOINT when it was imported."""
    with serve(files, announced) as hub:
        monkeypatch.setattr(huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, endpoint=hub.url))
        yield hub


def test_mixkit_is_read_member_by_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "all_mixkit/Fish.tar": FISH,
        "all_mixkit/Hostile.tar": HOSTILE,
        "all_mixkit/mixkit_2.zip.001": b"another form of the same",
        "all_mixkit/extra.json": json.dumps({"Hostile/honest.mp4": "by path"}).encode(),
        "anno_jsons/video_mixkit_65f.json": json.dumps(ANNOTATIONS).encode(),
        "anno_jsons/sam_image.json": b"gigabytes of something else",
    }
    with _hub(monkeypatch, files) as hub:
        counts = _fetch(tmp_path)
    assert counts == {"videos": 4, "distinct_captions": 3, "without_caption": 1, "commit": COMMIT}
    rows = manifest.read_manifest(tmp_path / "raw")
    assert [(row["source"], row["caption"], row["path"]) for row in rows] == [
        ("Fish.tar/Fish/a.mp4", "the beginning", "videos/000000.mp4"),
        ("Fish.tar/mnt/Fish/b.mov", "a plain string", "videos/000001.mov"),
        ("Fish.tar/Fish/silent.mp4", None, "videos/000002.mp4"),
        ("Hostile.tar/honest.mp4", "by path", "videos/000003.mp4"),
    ]
    assert [(tmp_path / "raw" / row["path"]).read_bytes() for row in rows] == [b"a", b"b", b"silent", b"honest"]
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "hub"}
    assert len(list((tmp_path / "raw").rglob("*"))) == 6
    assert not any("zip" in line or "sam_image" in line for line in hub.asked)
    passed_over = capsys.readouterr().err
    for name in ("../out.mp4", ABSOLUTE, "link.mp4", "hard.mp4", "device.mp4", "honest.mp4"):
        assert f"passed over '{name}'" in passed_over


def test_mixkit_stops_fetching_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "all_mixkit/Fish.tar": FISH,
        "all_mixkit/Zoo.tar": _tar(("Zoo/z.mp4", b"z")),
        "anno_jsons/video_mixkit_65f.json": json.dumps(ANNOTATIONS).encode(),
    }
    with _hub(monkeypatch, files) as hub:
        assert _fetch(tmp_path, limit=2)["videos"] == 2
    assert not any("Zoo.tar" in line for line in hub.asked)


def test_an_earlier_try_s_parts_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _hub(monkeypatch, {"all_mixkit/Fish.tar": FISH} | CAPTIONS) as hub:
        for _ in range(2):
            shutil.rmtree(tmp_path / "raw", ignore_errors=True)
            assert _fetch(tmp_path)["videos"] == 3
    assert len([line for line in hub.asked if line.startswith("GET") and line.endswith("Fish.tar")]) == 1


def test_the_endpoint_of_the_environment_is_asked(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from causvid.data.sources import DownloadConfig, mixkit_videos\n"
        "config = DownloadConfig(source='mixkit', folder=Path(), captions=Path(), toy_world_captions=Path(),\n"
        "    toy_world_clips=0, limit=None,\n"
        f"    mixkit_repo={REPO!r}, mixkit_revision='main', mixkit_folder='all_mixkit')\n"
        "mixkit_videos(Path('raw'), config, hub=Path('hub'))\n"
    )
    with serve({"all_mixkit/Fish.tar": FISH} | CAPTIONS) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": "home", "PYTHONPATH": str(Path.cwd())}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    assert len(manifest.read_manifest(tmp_path / "raw")) == 3


@pytest.mark.parametrize(
    ("files", "announced", "changes", "message"),
    [
        ({"all_mixkit/Fish.tar": FISH} | CAPTIONS, {"all_mixkit/Fish.tar": b"other"}, {}, "Fish.tar arrived damaged"),
        ({"all_mixkit/Fish.tar": FISH[: 1024 + 512]} | CAPTIONS, {}, {}, "no sound tar archive"),
        ({"all_mixkit/Fish.tar": FISH}, {}, {}, "has no captions"),
        ({"all_mixkit/notes.txt": b"-"} | CAPTIONS, {}, {}, "holds no tar part with a video"),
        ({"all_mixkit/Fish.tar": FISH} | CAPTIONS, {}, {"mixkit_folder": "gone"}, "folder gone) is not on the hub"),
        ({"all_mixkit/Fish.tar": FISH} | CAPTIONS, {}, {"mixkit_revision": "gone"}, "(revision gone, "),
    ],
    ids=["wrong hash", "cut tar", "no captions", "no tar", "no folder", "no revision"],
)
def test_what_the_hub_does_not_have_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    announced: dict[str, bytes],
    changes: dict[str, Any],
    message: str,
) -> None:
    with _hub(monkeypatch, files, announced), pytest.raises(ValueError, match=re.escape(message)):
        _fetch(tmp_path, **changes)
