"""MixKit videos get correct names and captions from their archives, and hostile archives are handled safely."""

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
from unicodedata import normalize

import pytest
from huggingface_hub import HfApi

from causvid.data import hub as hub_module
from causvid.data.sources import mixkit
from causvid.data.sources.config import DownloadConfig
from causvid.data.sources.mixkit import mixkit_videos
from causvid.data.sources.passed_over import PASSED_OVER
from causvid.data.videos import manifest
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
    """Serve ``files``, and replace the endpoint of the hub client, which read HF_ENDPOINT when it was imported."""
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
    assert manifest.read_rows(tmp_path / "raw" / PASSED_OVER) == [
        {
            "source": "Town.tar/Fish/again.mp4",
            "code": "same_content",
            "reason": "the content is that of Fish.tar/Fish/a.mp4",
        }
    ]
    assert len(list((tmp_path / "raw").rglob("*"))) == 7
    assert not any("zip" in line or "sam_image" in line for line in stand_in.asked)


def test_mixkit_stops_downloading_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"all_mixkit/Fish.tar": FISH, "all_mixkit/Zoo.tar": tar(("Zoo/z.mp4", b"z"))} | CAPTIONS
    with _hub(monkeypatch, files) as stand_in:
        assert _fetch(tmp_path, limit=2)["videos"] == 2
        assert not stand_in.bytes_asked("all_mixkit/Zoo.tar")
    assert len(list((tmp_path / "raw" / "videos").iterdir())) == 2


def test_parts_of_an_earlier_try_are_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _hub(monkeypatch, {"all_mixkit/Fish.tar": FISH} | CAPTIONS) as stand_in:
        for _ in range(2):
            shutil.rmtree(tmp_path / "raw", ignore_errors=True)
            assert _fetch(tmp_path)["videos"] == 3
        assert stand_in.bytes_asked("all_mixkit/Fish.tar") == [""]


def test_the_endpoint_of_the_environment_is_used(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from tests.unit.data.test_mixkit import _config\n"
        "from causvid.data.sources.mixkit import mixkit_videos\n"
        "mixkit_videos(Path('raw'), _config(), hub=Path('hub'))\n"
    )
    with serve({"all_mixkit/Fish.tar": FISH} | CAPTIONS) as stand_in:
        environment = os.environ | {"HF_ENDPOINT": stand_in.url, "HF_HOME": "home", "PYTHONPATH": str(Path.cwd())}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    assert len(manifest.read_manifest(tmp_path / "raw")) == 3


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({"all_mixkit/Fish.tar": FISH[: 1024 + 512]} | CAPTIONS, {}, "not a valid tar archive"),
        ({"all_mixkit/Fish.tar": b"<html>"} | CAPTIONS, {}, "not a valid tar archive"),
        ({"all_mixkit/Fish.tar": FISH}, {}, "anno_jsons/video_mixkit*.json; someone/videos has no such file"),
        ({"all_mixkit/notes.txt": b"-"} | CAPTIONS, {}, "all_mixkit/*.tar; someone/videos has no such file"),
        ({"all_mixkit/Fish.tar": tar(("readme.txt", b"-"))} | CAPTIONS, {}, "none of the 1 parts contains a video"),
        ({"all_mixkit/Fish.tar": FISH} | CAPTIONS, {"mixkit_files": "gone/*"}, "gone/*; someone/videos has no"),
        (
            {"all_mixkit/Fish.tar": FISH} | CAPTIONS,
            {"mixkit_revision": "gone"},
            "(revision gone) does not exist on the hub",
        ),
    ],
    ids=["cut tar", "no tar", "no captions", "no part", "no video", "no folder", "no revision"],
)
def test_missing_and_damaged_files_on_the_hub_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], changes: dict[str, Any], message: str
) -> None:
    with _hub(monkeypatch, files), pytest.raises(ValueError, match=re.escape(message)):
        _fetch(tmp_path, **changes)


# --- Hostile archives. Each archive also has a valid video, which is kept. An error names the hostile member.

ABSOLUTE = f"{os.sep}absolute.mp4"
HONEST = ("honest.mp4", b"honest")


def _sparse(name: str) -> bytes:
    """Return a sparse GNU tar member of 7 GiB that occupies one tar block."""
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
    """Return the header of a tar member of 100 GiB."""
    info = tarfile.TarInfo(name)
    info.size = 100 * 2**30
    return info.tobuf(tarfile.GNU_FORMAT)


def _before(content: bytes) -> bytes:
    """Return ``content`` followed by a valid video and the end of the archive."""
    return content + tar(HONEST)


LINKS = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "climbs": (tar(("../out.mp4", b"outside"), HONEST), "../out.mp4"),
    "parent folders inside a path": (tar(("a/../../out.mp4", b"outside"), HONEST), "a/../../out.mp4"),
    "absolute": (tar((ABSOLUTE, b"outside"), HONEST), ABSOLUTE),
    "absolute after a pax header": (_before(_pax("x.mp4", {"path": ABSOLUTE})), ABSOLUTE),
    "symlink out": (tar(special("link.mp4", LINKS["sym"], "/etc/passwd"), HONEST), "link.mp4"),
    "symlink and a member through the symlink": (
        tar(special("d.mp4", LINKS["sym"], ".."), ("d.mp4/out.mp4", b"outside"), HONEST),
        "d.mp4",
    ),
    "symlink loop": (tar(special("loop.mp4", LINKS["sym"], "loop.mp4"), HONEST), "loop.mp4"),
    "hard link to a file outside": (tar(special("hard.mp4", LINKS["hard"], "../../secret"), HONEST), "hard.mp4"),
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
    "too many members": (tar(*((f"{i}.txt", b"") for i in range(60))), "50.txt"),
    "dots in names and parent folders": (tar(("...mp4/../../..mp4", b"outside"), HONEST), "...mp4/../../..mp4"),
    "line feed": (tar(("../a\nb.mp4", b"outside"), HONEST), "../a\\nb.mp4"),
}


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_archive_writes_nothing_outside_its_folder_and_is_named(
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
            rows = manifest.read_rows(work / "raw" / PASSED_OVER)
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


# --- Text that UTF-8 cannot encode


def _rows(tmp_path: Path) -> list[tuple[str, Any]]:
    return [(row["source"], row["caption"]) for row in manifest.read_manifest(tmp_path / "raw")]


def _passed(tmp_path: Path) -> list[tuple[str, str, str]]:
    rows = manifest.read_rows(tmp_path / "raw" / PASSED_OVER)
    return [(row["source"], row["code"], row["reason"]) for row in rows]


@pytest.mark.parametrize(
    "name",
    [
        "café.mp4".encode("latin-1"),
        "Fish/ビデオ.mp4".encode("shift-jis"),
        "видео/в.mov".encode("koi8-r"),
        b"\xed\xa0\xbd.mp4",
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_only_a_member_with_a_name_in_another_encoding_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, form: int
) -> None:
    shown = os.fsdecode(name)
    content = _member(shown, form, b"odd") + FISH
    with _hub(monkeypatch, {"all_mixkit/Fish.tar": content} | CAPTIONS):
        counts = _fetch(tmp_path)
    assert (counts["videos"], counts["passed_over"]) == (3, 1)
    ((source, code, reason),) = _passed(tmp_path)
    assert source == "Fish.tar/" + shown.encode(errors="backslashreplace").decode()
    assert code == "not_utf8"
    assert reason.startswith("the name holds U+DC")


def _member(name: str, form: int, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    header = info.tobuf(form, encoding="utf-8", errors="surrogateescape")
    return header + content.ljust(tarfile.BLOCKSIZE, b"\0")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_the_row_of_a_member_that_is_passed_over_is_valid_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    odd = special("../\udce9.mp4", kind, "\udcff")
    with _hub(monkeypatch, {"all_mixkit/Fish.tar": tar(odd, HONEST, ("readme\udce9.txt", b"-"))} | CAPTIONS):
        assert _fetch(tmp_path)["videos"] == 1
    (tmp_path / "raw" / PASSED_OVER).read_bytes().decode()
    assert [(source, code) for source, code, _ in _passed(tmp_path)] == [("Fish.tar/../\\udce9.mp4", "not_utf8")]


@pytest.mark.parametrize("broken", ["half \ud83d", "\udc00 first", "\ude00\ud83d", "byte \udce9"])
def test_a_caption_that_utf8_cannot_hold_excludes_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    said = [
        {"path": "Fish/a.mp4", "cap": [broken]},
        {"path": "Fish/b.mov", "cap": "fine"},
        {"path": "x\ud83d", "cap": ""},
    ]
    files = {"all_mixkit/Fish.tar": FISH, "all_mixkit/c.json": json.dumps(said).encode()}
    with _hub(monkeypatch, files):
        counts = _fetch(tmp_path)
    assert (counts["videos"], counts["passed_over"]) == (2, 2)
    assert _rows(tmp_path) == [("Fish.tar/mnt/Fish/b.mov", "fine"), ("Fish.tar/Fish/silent.mp4", None)]
    assert [row["id"] for row in manifest.read_manifest(tmp_path / "raw")] == ["000000", "000001"]
    (entry, video) = _passed(tmp_path)
    assert entry[:2] == ("all_mixkit/c.json: x\\ud83d", "not_utf8")
    assert video[:2] == ("Fish.tar/Fish/a.mp4", "not_utf8")
    assert video[2].startswith("the caption holds U+D")
    assert len(list((tmp_path / "raw" / "videos").iterdir())) == 2


def test_captions_none_of_which_utf8_can_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"all_mixkit/Fish.tar": tar(("a.mp4", b"a")), "all_mixkit/c.json": json.dumps({"a.mp4": "\ud83d"}).encode()}
    with (
        _hub(monkeypatch, files),
        pytest.raises(ValueError, match=r"can be used, for example Fish.tar/a.mp4: the caption holds"),
    ):
        _fetch(tmp_path)


# --- Captions that match full paths or unique ends of paths


def _said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: dict[str, list[str]], paths: list[str], **changes: Any
) -> dict[str, Any]:
    """Return the caption of each video in ``parts`` (map of part to members).

    Each caption text is the path of its caption.
    """
    files = {
        f"all_mixkit/{part}.tar": tar(*((name, f"{part} {name}".encode()) for name in names))
        for part, names in parts.items()
    }
    with _hub(monkeypatch, files | {"all_mixkit/c.json": json.dumps({path: path for path in paths}).encode()}):
        _fetch(tmp_path, **changes)
    return {source.replace(".tar/", ": "): caption for source, caption in _rows(tmp_path)}


@pytest.mark.parametrize(
    ("parts", "captions", "expected"),
    [
        # As in the original MixKit captions "<part>/<file>", the part has the same folder, more folders, or no folder.
        ({"Fish": ["Fish/a.mp4", "mnt/Fish/b.mp4", "c.mp4"]}, ["Fish/a.mp4", "Fish/b.mp4", "Fish/c.mp4"],
         {"Fish: Fish/a.mp4": "Fish/a.mp4", "Fish: mnt/Fish/b.mp4": "Fish/b.mp4", "Fish: c.mp4": "Fish/c.mp4"}),
        ({"P": ["A/v.mp4", "B/v.mp4"]}, ["A/v.mp4"], {"P: A/v.mp4": "A/v.mp4", "P: B/v.mp4": None}),
        ({"P": ["B/v.mp4", "A/v.mp4"]}, ["P/A/v.mp4"], {"P: A/v.mp4": "P/A/v.mp4", "P: B/v.mp4": None}),
        ({"P": ["A/v.mp4", "B/v.mp4"]}, ["v.mp4"], {"P: A/v.mp4": None, "P: B/v.mp4": None}),
        ({"P": ["A/v.mp4"], "Q": ["B/v.mp4"]}, ["v.mp4"], {"P: A/v.mp4": None, "Q: B/v.mp4": None}),
        ({"P": ["A/v.mp4"], "Q": ["A/v.mp4"]}, ["Q/A/v.mp4"], {"P: A/v.mp4": None, "Q: A/v.mp4": "Q/A/v.mp4"}),
        ({"P": ["v.mp4"], "Q": ["v.mp4"]}, ["Q/v.mp4"], {"P: v.mp4": None, "Q: v.mp4": "Q/v.mp4"}),
        ({"P": ["A/v.mp4"]}, ["v.mp4"], {"P: A/v.mp4": "v.mp4"}),
        ({"P": ["A/v.mp4"]}, ["/clips/A/v.mp4"], {"P: A/v.mp4": "/clips/A/v.mp4"}),
        ({"P": ["v.mp4"]}, ["/clips/v.mp4"], {"P: v.mp4": "/clips/v.mp4"}),
        ({"P": ["A/v.mp4"]}, ["B/v.mp4"], {"P: A/v.mp4": None}),
        ({"Fish": ["v.mp4"]}, ["Fish/w.mp4", "Town/v.mp4"], {"Fish: v.mp4": None}),  # Town is not a part
        ({"P": ["A/v.mp4"]}, ["X/v.mp4", "Y/v.mp4"], {"P: A/v.mp4": None}),
        ({"P": ["v.mp4", "A/v.mp4"]}, ["v.mp4", "A/v.mp4"], {"P: v.mp4": "v.mp4", "P: A/v.mp4": "A/v.mp4"}),
        ({"P": ["v.mp4", "A/v.mp4"]}, ["v.mp4"], {"P: v.mp4": "v.mp4", "P: A/v.mp4": None}),
        ({"P": ["x.mp4"], "Q": ["A/v.mp4"]}, ["P/v.mp4"], {"P: x.mp4": None, "Q: A/v.mp4": None}),
    ],
)  # fmt: skip
def test_a_caption_matches_a_full_path_or_a_unique_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: dict[str, list[str]],
    captions: list[str],
    expected: dict[str, str | None],
) -> None:
    assert _said(monkeypatch, tmp_path, parts, captions) == expected


@pytest.mark.parametrize(
    "parts",
    [
        {"P": ["B/v.mp4", "A/v.mp4"]},  # the second video follows the limit in the same part
        {"B": ["v.mp4"], "P": ["A/v.mp4"]},  # the second video is in a part that is not read
        {"B": ["v.mp4", "w.mp4"], "C": ["v.mp4"]},
    ],
)
@pytest.mark.parametrize("path", ["A/v.mp4", "v.mp4"])
def test_with_a_limit_no_video_has_the_caption_of_an_unread_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, list[str]], path: str
) -> None:
    assert set(_said(monkeypatch, tmp_path, parts, [path], limit=1).values()) == {None}


def test_with_a_limit_bare_file_names_are_ignored_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"P": ["A/v.mp4", "A/w.mp4"], "Q": ["x.mp4"]}
    assert _said(monkeypatch, tmp_path, parts, ["A/v.mp4", "w.mp4"], limit=2) == {
        "P: A/v.mp4": "A/v.mp4",
        "P: A/w.mp4": None,
    }
    assert (
        "download.limit leaves parts unread, so captions with a bare file name are ignored" in capsys.readouterr().err
    )
    shutil.rmtree(tmp_path / "raw")
    assert "w.mp4" in _said(monkeypatch, tmp_path, parts, ["A/v.mp4", "w.mp4"], limit=3).values()
    assert "download.limit" not in capsys.readouterr().err


def test_a_video_that_is_passed_over_keeps_its_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar(special("A/v.mp4", tarfile.SYMTYPE, "x"), ("B/v.mp4", b"v"))
    files = {"all_mixkit/P.tar": content, "all_mixkit/c.json": json.dumps({"A/v.mp4": "of A"}).encode()}
    with _hub(monkeypatch, files):
        _fetch(tmp_path)
    assert _rows(tmp_path) == [("P.tar/B/v.mp4", None)]


def test_copies_of_one_video_share_their_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "all_mixkit/P.tar": tar(("A/v.mp4", b"same"), ("B/w.mp4", b"same")),
        "all_mixkit/c.json": json.dumps({"B/w.mp4": "of both"}).encode(),
    }
    with _hub(monkeypatch, files):
        _fetch(tmp_path)
    assert _rows(tmp_path) == [("P.tar/A/v.mp4", "of both")]


# --- Captions and members with composed and decomposed names


@pytest.mark.parametrize("name", ["caf\u00e9", "\u304c\u304e", "\uac00\ub098"])
@pytest.mark.parametrize(("file", "caption"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_member_matches_its_caption_in_the_other_unicode_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: Any, caption: Any
) -> None:
    member, path = f"{normalize(file, name)}/v.mp4", f"Fish/{normalize(caption, name)}/v.mp4"
    assert _said(monkeypatch, tmp_path, {"Fish": [member]}, [path]) == {f"Fish: {member}": path}


@pytest.mark.parametrize("name", ["caf\u00e9", "\u304c\u304e", "\uac00\ub098"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_one_of_two_members_that_differ_only_in_form_has_the_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: Any
) -> None:
    members = [f"Fish/{normalize(f, name)}.mp4" for f in ("NFC", "NFD")]
    path = f"Fish/{normalize(form, name)}.mp4"
    found = _said(monkeypatch, tmp_path, {"Fish": members}, [path])
    assert found == {f"Fish: {member}": path if member == path else None for member in members}
