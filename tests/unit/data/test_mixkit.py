"""MixKit: which videos come out of its archives, under which names and captions; what hostile archives leave (nothing)."""

from __future__ import annotations

import hashlib
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

import pytest
from huggingface_hub import HfApi

from causvid.data import hub as hub_module
from causvid.data import manifest, mixkit
from causvid.data.mixkit import mixkit_videos
from causvid.data.sources import DownloadConfig
from tests.unit.data.hub_stand_in import COMMIT, REPO, StandIn, serve


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
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


def special(name: str, kind: bytes, to: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, to, size
    return info


FISH = tar(("Fish/a.mp4", b"a"), ("mnt/Fish/b.mov", b"b"), ("Fish/silent.mp4", b"silent"))
ANNOTATIONS = [
    {"path": "Fish/a.mp4", "frame_idx": "65:130", "cap": ["a later stretch"]},
    {"path": "Fish/a.mp4", "frame_idx": "0:65", "cap": ["the  beginning", "another"]},
    {"path": "Fish/b.mov", "frame_idx": "0:513", "cap": "a plain string"},
]
CAPTIONS = {"anno_jsons/video_mixkit_65f.json": json.dumps(ANNOTATIONS).encode()}


def _config(**changes: Any) -> DownloadConfig:
    values: dict[str, Any] = {
        "source": "mixkit", "folder": Path("unused"), "captions": Path("unused"),
        "toy_world_captions": Path("unused"), "toy_world_clips": 1, "limit": None,
        "mixkit_repo": REPO, "mixkit_revision": "main", "mixkit_files": "all_mixkit/*.tar",
        "mixkit_captions": ("all_mixkit/*.json", "anno_jsons/video_mixkit*.json"),
    }  # fmt: skip
    return DownloadConfig(**(values | changes))


def _fetch(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return mixkit_videos(tmp_path / "raw", _config(**changes), hub=tmp_path / "hub")


@contextmanager
def _hub(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[StandIn]:
    """The stand-in, and this process's client talking to it: it has read HF_ENDPOINT when it was imported."""
    with serve(files) as stand_in:
        monkeypatch.setattr(hub_module, "HfApi", partial(HfApi, endpoint=stand_in.url))
        yield stand_in


def _named(content: bytes, suffix: str = ".mp4") -> str:
    return f"videos/{hashlib.sha256(content).hexdigest()}{suffix}"


def test_mixkit_is_read_member_by_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "all_mixkit/Fish.tar": FISH,
        "all_mixkit/Town.tar": tar(("readme.txt", b"no video"), ("honest.mp4", b"honest"), ("Fish/again.mp4", b"a")),
        "all_mixkit/mixkit_2.zip.001": b"another form of the same",
        "all_mixkit/extra.json": json.dumps({"Town/honest.mp4": "by path"}).encode(),
        "anno_jsons/video_mixkit_65f.json": json.dumps(ANNOTATIONS).encode(),
        "anno_jsons/sam_image.json": b"gigabytes of something else",
    }
    with _hub(monkeypatch, files) as stand_in:
        counts = _fetch(tmp_path)
    expected = {"videos": 4, "distinct_captions": 3, "without_caption": 1, "passed_over": 1, "commit": COMMIT}
    assert counts == expected
    rows = manifest.read_manifest(tmp_path / "raw")
    assert [(row["id"], row["source"], row["caption"], row["path"]) for row in rows] == [
        ("000000", "Fish.tar/Fish/a.mp4", "the beginning", _named(b"a")),
        ("000001", "Fish.tar/mnt/Fish/b.mov", "a plain string", _named(b"b", ".mov")),
        ("000002", "Fish.tar/Fish/silent.mp4", None, _named(b"silent")),
        ("000003", "Town.tar/honest.mp4", "by path", _named(b"honest")),
    ]
    assert [(tmp_path / "raw" / row["path"]).read_bytes() for row in rows] == [b"a", b"b", b"silent", b"honest"]
    assert manifest.read_rows(tmp_path / "raw" / mixkit.PASSED_OVER) == [
        {
            "source": "Town.tar/Fish/again.mp4",
            "code": "same_content",
            "reason": "it is Fish.tar/Fish/a.mp4 again, byte for byte",
        }
    ]
    assert len(list((tmp_path / "raw").rglob("*"))) == 7
    assert not any("zip" in line or "sam_image" in line for line in stand_in.asked)


def test_mixkit_stops_fetching_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"all_mixkit/Fish.tar": FISH, "all_mixkit/Zoo.tar": tar(("Zoo/z.mp4", b"z"))} | CAPTIONS
    with _hub(monkeypatch, files) as stand_in:
        assert _fetch(tmp_path, limit=2)["videos"] == 2
        assert not stand_in.bytes_asked("all_mixkit/Zoo.tar")
    assert len(list((tmp_path / "raw" / "videos").iterdir())) == 2


def test_an_earlier_try_s_parts_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _hub(monkeypatch, {"all_mixkit/Fish.tar": FISH} | CAPTIONS) as stand_in:
        for _ in range(2):
            shutil.rmtree(tmp_path / "raw", ignore_errors=True)
            assert _fetch(tmp_path)["videos"] == 3
        assert stand_in.bytes_asked("all_mixkit/Fish.tar") == [""]


def test_the_endpoint_of_the_environment_is_asked(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from tests.unit.data.test_mixkit import _config\n"
        "from causvid.data.mixkit import mixkit_videos\n"
        "mixkit_videos(Path('raw'), _config(), hub=Path('hub'))\n"
    )
    with serve({"all_mixkit/Fish.tar": FISH} | CAPTIONS) as stand_in:
        environment = os.environ | {"HF_ENDPOINT": stand_in.url, "HF_HOME": "home", "PYTHONPATH": str(Path.cwd())}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    assert len(manifest.read_manifest(tmp_path / "raw")) == 3


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({"all_mixkit/Fish.tar": FISH[: 1024 + 512]} | CAPTIONS, {}, "no sound tar archive"),
        ({"all_mixkit/Fish.tar": b"<html>"} | CAPTIONS, {}, "no sound tar archive"),
        ({"all_mixkit/Fish.tar": FISH}, {}, "anno_jsons/video_mixkit*.json; someone/videos has nothing there"),
        ({"all_mixkit/notes.txt": b"-"} | CAPTIONS, {}, "all_mixkit/*.tar; someone/videos has no such file"),
        ({"all_mixkit/Fish.tar": tar(("readme.txt", b"-"))} | CAPTIONS, {}, "no video lies in the 1 parts"),
        ({"all_mixkit/Fish.tar": FISH} | CAPTIONS, {"mixkit_files": "gone/*"}, "gone/*; someone/videos has no"),
        ({"all_mixkit/Fish.tar": FISH} | CAPTIONS, {"mixkit_revision": "gone"}, "(revision gone) is not on the hub"),
    ],
    ids=["cut tar", "no tar", "no captions", "no part", "no video", "no folder", "no revision"],
)
def test_what_the_hub_does_not_have_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], changes: dict[str, Any], message: str
) -> None:
    with _hub(monkeypatch, files), pytest.raises(ValueError, match=re.escape(message)):
        _fetch(tmp_path, **changes)


# --- Hostile archives. Each also holds one honest video, which comes through; the member that is not honest is named.

ABSOLUTE = f"{os.sep}absolute.mp4"
HONEST = ("honest.mp4", b"honest")


def _sparse(name: str) -> bytes:
    """A GNU sparse member of seven gigabytes that takes one block."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % (7 * 2**30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512


def _pax(name: str, records: dict[str, str]) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = 1, records
    return info.tobuf(tarfile.PAX_FORMAT) + b"x" + bytes(511)


def _huge(name: str) -> bytes:
    """Says that it has 100 gigabytes."""
    info = tarfile.TarInfo(name)
    info.size = 100 * 2**30
    return info.tobuf(tarfile.GNU_FORMAT)


def _before(content: bytes) -> bytes:
    """``content`` and then an honest video and the archive's end."""
    return content + tar(HONEST)


LINKS = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "climbs": (tar(("../out.mp4", b"outside"), HONEST), "../out.mp4"),
    "climbs in the middle": (tar(("a/../../out.mp4", b"outside"), HONEST), "a/../../out.mp4"),
    "absolute": (tar((ABSOLUTE, b"outside"), HONEST), ABSOLUTE),
    "absolute after a pax header": (_before(_pax("x.mp4", {"path": ABSOLUTE})), ABSOLUTE),
    "symlink out": (tar(special("link.mp4", LINKS["sym"], "/etc/passwd"), HONEST), "link.mp4"),
    "symlink then through it": (
        tar(special("d.mp4", LINKS["sym"], ".."), ("d.mp4/out.mp4", b"outside"), HONEST),
        "d.mp4",
    ),
    "symlink loop": (tar(special("loop.mp4", LINKS["sym"], "loop.mp4"), HONEST), "loop.mp4"),
    "hard link out": (tar(special("hard.mp4", LINKS["hard"], "../../secret"), HONEST), "hard.mp4"),
    "hard link to a symlink": (
        tar(special("s.mp4", LINKS["sym"], "/etc/passwd"), special("h.mp4", LINKS["hard"], "s.mp4"), HONEST),
        "h.mp4",
    ),
    "link by pax header": (_before(_pax("p.mp4", {"linkpath": "/etc/passwd", "path": "../p.mp4"})), "../p.mp4"),
    "character device": (tar(special("null.mp4", tarfile.CHRTYPE), HONEST), "null.mp4"),
    "block device": (tar(special("disk.mp4", tarfile.BLKTYPE), HONEST), "disk.mp4"),
    "pipe": (tar(special("pipe.mp4", tarfile.FIFOTYPE), HONEST), "pipe.mp4"),
    "sparse": (_before(_sparse("sparse.mp4")), "sparse.mp4"),
    "sparse by pax header": (
        _before(_pax("sp.mp4", {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10 * 2**30)})),
        "sp.mp4",
    ),
    "twice": (tar(HONEST, ("honest.mp4", b"another")), "honest.mp4"),
    "too large": (_huge("huge.mp4"), "huge.mp4"),
    "too many": (tar(*((f"{i}.txt", b"") for i in range(60))), "50.txt"),
    "dot dot only": (tar(("...mp4/../../..mp4", b"outside"), HONEST), "...mp4/../../..mp4"),
    "line feed": (tar(("../a\nb.mp4", b"outside"), HONEST), "../a\\nb.mp4"),
}


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_archive_writes_nothing_outside_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, member = HOSTILE[name]
    monkeypatch.setattr(mixkit, "MEMBERS", 50)
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    with _hub(monkeypatch, {"all_mixkit/Bad.tar": content} | CAPTIONS):
        try:
            _fetch(work)
        except ValueError as error:
            said = str(error)
        else:
            rows = manifest.read_rows(work / "raw" / mixkit.PASSED_OVER)
            said = " ".join(repr(row["source"]) for row in rows)
            assert all(row["code"] for row in rows)
            assert said in capsys.readouterr().err or len(rows) > 1
            kept = manifest.read_manifest(work / "raw")
            assert _named(b"honest") in [row["path"] for row in kept]
    assert member in said
    found = _listing(tmp_path)
    assert found.pop("secret") == b"secret"
    assert all(path.startswith("deep/work/") for path in found)
    assert not Path(ABSOLUTE).exists()
    assert sum(len(value) for path, value in found.items() if "/raw/" in path) < 10_000
