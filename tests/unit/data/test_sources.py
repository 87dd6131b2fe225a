"""Every source writes the expected files and rows to data/raw, and unusable input raises an error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from causvid.data.sources.config import DownloadConfig
from causvid.data.sources.local import folder_videos, toy_world_videos
from causvid.data.sources.passed_over import PASSED_OVER
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.runtime import text
from causvid.runtime.shapes import VideoShape

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
def test_a_config_without_videos_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)


# --- The source toy_world


def test_one_and_two_workers_write_the_same_toy_world(tmp_path: Path) -> None:
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


def test_the_limit_applies_to_the_toy_world(tmp_path: Path) -> None:
    counts = toy_world_videos(tmp_path / "raw", _config(source="toy_world", limit=2), video=VIDEO, seed=0, workers=1)
    assert counts["videos"] == 2


def test_a_missing_file_of_captions_is_named(tmp_path: Path) -> None:
    config = _config(source="toy_world", toy_world_captions=tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="download.toy_world_captions is .*mine.txt, which does not exist"):
        toy_world_videos(tmp_path / "raw", config, video=VIDEO, seed=0, workers=1)


# --- The source folder


def _folder(tmp_path: Path, *names: str) -> Path:
    """Return a folder of dummy video files. The source does not read the content of these files."""
    for name in names:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "mine"


def _take(folder: Path, captions: Path, **changes: Any) -> list[dict[str, Any]]:
    out = folder.parent / "raw"
    folder_videos(out, _config(folder=folder, captions=captions, **changes))
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
    # if the copy were a link, an edit of one file would change the other file
    assert copy.stat().st_ino != (folder / "deep/er/a.MOV").stat().st_ino


def test_a_folder_with_sidecar_captions(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.mp4", "sub/b.webm")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfan a\r\nin two lines\r\n")
    (folder / "sub" / "b.txt").write_text("a b")
    rows = _take(folder, folder / "captions.json")
    assert [row["caption"] for row in rows] == ["an a in two lines", "a b"]


def test_the_limit_selects_the_first_files_by_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path, *(f"{name}.mp4" for name in "dbca"))
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"{name}.mp4": name for name in "abcd"}))
    assert [row["caption"] for row in _take(folder, captions, limit=2)] == ["a", "b"]


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere, which is not a folder"):
        _take(tmp_path / "nowhere", tmp_path / "captions.json")
    with pytest.raises(ValueError, match=r"mine, which has no video \(.*\.mp4.*\); name"):
        _take(_folder(tmp_path, "notes.txt"), tmp_path / "captions.json")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"a.mp4": "a"}, "no caption for b.mp4; add"),
        ({"a.mp4": "a", "b.mp4": "  "}, "no caption for b.mp4"),
        ({"a.mp4": "a", "b.mp4": "b", "c.mp4": "c"}, "names videos that are not in .*: c.mp4"),
        ({"a.mp4": "a", "b.mp4": 3}, "caption of b.mp4 is not a string"),
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


# --- Text that UTF-8 cannot encode


@pytest.mark.parametrize("broken", ["half \ud83d", "\udc00 the other half", "\ude00\ud83d turned round", "byte \udcff"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_caption_that_utf8_cannot_hold_excludes_one_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str, as_list: bool
) -> None:
    folder, captions = _folder(tmp_path, "a.mp4", "b.mp4", "c.mp4"), tmp_path / "captions.json"
    said = {"a.mp4": "an a 😀", "b.mp4": broken, "c.mp4": "a c"}
    listed = [{"path": path, "cap": [caption]} for path, caption in said.items()]
    captions.write_text(json.dumps(listed if as_list else said))
    rows = _take(folder, captions)
    assert [(row["id"], row["source"], row["caption"]) for row in rows] == [
        ("000000", "a.mp4", "an a 😀"),
        ("000001", "c.mp4", "a c"),
    ]
    (passed,) = manifest.read_rows(tmp_path / "raw" / PASSED_OVER)
    assert (passed["source"], passed["code"]) == ("b.mp4", "not_utf8")
    assert passed["reason"].startswith("the caption holds U+D")
    assert "passed over 'b.mp4': the caption holds U+D" in capsys.readouterr().err
    assert len(list((tmp_path / "raw" / "videos").iterdir())) == 2


OTHER_NAMES = [
    "café.mp4".encode("latin-1"),
    "ビデオ.mp4".encode("shift-jis"),
    "видео/в.mov".encode("koi8-r"),
    b"\xff\xfe.mp4",
]


def _bytes_file(folder: Path, name: bytes, content: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("beside", [False, True], ids=["captions file", "sidecars"])
def test_a_file_name_in_another_encoding_excludes_one_video(tmp_path: Path, name: bytes, beside: bool) -> None:
    folder, captions = _folder(tmp_path, "a.mp4", "z.mp4"), tmp_path / "captions.json"
    _bytes_file(folder, name, b"a video")
    if beside:
        for stem in (b"a", b"z", name.rpartition(b".")[0]):
            _bytes_file(folder, stem + b".txt", b"a caption")
    else:
        captions.write_text(json.dumps({"a.mp4": "a caption", "z.mp4": "a caption", os.fsdecode(name): "a caption"}))
    assert [row["source"] for row in _take(folder, captions)] == ["a.mp4", "z.mp4"]
    (passed,) = manifest.read_rows(tmp_path / "raw" / PASSED_OVER)
    assert passed["source"] == os.fsdecode(name).encode(errors="backslashreplace").decode()
    assert passed["reason"].startswith("the name holds U+DC")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("ein Café".encode("latin-1"), "byte 0xE9 in line 1"),
        ("two\nlines".encode("utf-16"), "byte 0xFF in line 1"),
        ("one\nпоезд".encode("cp1251"), "byte 0xEF in line 2"),
        (b"half \xed\xa0\xbd", "byte 0xED in line 1"),
    ],
)
def test_a_sidecar_in_another_encoding_excludes_one_video(tmp_path: Path, content: bytes, place: str) -> None:
    folder = _folder(tmp_path, "a.mp4", "sub/b.mp4")
    (folder / "a.txt").write_text("an a")
    (folder / "sub" / "b.txt").write_bytes(content)
    assert [row["source"] for row in _take(folder, tmp_path / "captions.json")] == ["a.mp4"]
    (passed,) = manifest.read_rows(tmp_path / "raw" / PASSED_OVER)
    assert passed["source"] == "sub/b.mp4"
    assert passed["reason"].startswith("the caption sub/b.txt is not a UTF-8 text")
    assert place in passed["reason"]
    assert str(tmp_path) not in passed["reason"]  # outputs contain no absolute paths


@pytest.mark.parametrize("path", ["half \ud83d.mp4", "caf\udce9.mp4", "\udfff/v.mp4"])
def test_a_caption_path_that_utf8_cannot_hold_is_passed_over(tmp_path: Path, path: str) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"a.mp4": "an a", path: "none"}))
    assert [row["source"] for row in _take(_folder(tmp_path, "a.mp4"), captions)] == ["a.mp4"]
    (passed,) = manifest.read_rows(tmp_path / "raw" / PASSED_OVER)
    assert passed["source"].startswith("captions.json: ")
    assert passed["reason"].startswith("the path holds U+D")


@pytest.mark.parametrize("captions", [{"a.mp4": "half \ud83d"}, {"a.mp4": "\udc80", "\ud800": "x"}])
def test_a_folder_without_a_usable_video_is_refused_and_nothing_is_copied(
    tmp_path: Path, captions: dict[str, str]
) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match=r"mine; no video can be used, for example a.mp4: the caption holds U\+D"):
        _take(_folder(tmp_path, "a.mp4"), tmp_path / "captions.json")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    "content", ['{"a.mp4": "caf\xe9"}'.encode("latin-1"), '{"a.mp4": "\u3042"}'.encode("euc-jp"), b'{\n"\xff": ""}']
)
def test_a_captions_file_in_another_encoding_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "captions.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"captions.json is not a UTF-8 text \(.*: byte 0x.* in line [12]\); save it as"
    ):
        _take(_folder(tmp_path, "a.mp4"), tmp_path / "captions.json")


@pytest.mark.parametrize("path", [None, 3, ["a.mp4"]])
def test_a_path_that_is_not_a_string_is_refused(tmp_path: Path, path: Any) -> None:
    (tmp_path / "captions.json").write_text(json.dumps([{"path": path, "cap": "a"}]))
    with pytest.raises(ValueError, match=r"captions.json: the path .* is not a string"):
        _take(_folder(tmp_path, "a.mp4"), tmp_path / "captions.json")


@settings(max_examples=50, deadline=None)
@given(captions=st.lists(st.text(st.characters(), min_size=1), min_size=1, max_size=5))
@example(captions=["nul \x00", "a\rb", "c\u2028d", "e\x85f", "\x1b[31m", "\ufeff", "\ufffe"])
def test_any_captions_become_rows_or_reasons(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("any")
    said = {f"{index}.mp4": caption for index, caption in enumerate(captions)} | {"fine.mp4": "fine"}
    (place / "captions.json").write_text(json.dumps(said))
    lines = {name: " ".join(json.loads(json.dumps(caption)).split()) for name, caption in said.items()}
    folder = _folder(place, *said)
    if not all(lines.values()):
        with pytest.raises(ValueError, match=r"captions.json has no caption for"):
            _take(folder, place / "captions.json")
        return
    rows = _take(folder, place / "captions.json")
    held = {name: line for name, line in lines.items() if text.fault(line) is None}
    assert {row["source"]: row["caption"] for row in rows} == held
    assert {row["source"] for row in manifest.read_rows(place / "raw" / PASSED_OVER)} == lines.keys() - held.keys()


# --- Captions and files with composed and decomposed names

NAMES = ["caf\u00e9", "\u304c\u304e", "\uac00\ub098", "a\u030a\u0323 b"]
FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("file", "caption"), FORMS)
@pytest.mark.parametrize("beside", [False, True], ids=["captions file", "sidecars"])
def test_a_name_matches_in_the_other_unicode_form(
    tmp_path: Path, name: str, file: Any, caption: Any, beside: bool
) -> None:
    video, other = f"{normalize(file, name)}/{normalize(file, name)}.mp4", f"{normalize(caption, name)}"
    folder, captions = _folder(tmp_path, video, "b.mp4"), tmp_path / "captions.json"
    if beside:
        (folder / "b.txt").write_text("a b")
        (folder / normalize(file, name) / f"{other}.txt").write_text("the caption")
    else:
        captions.write_text(json.dumps({f"{other}/{other}.mp4": "the caption", "b.mp4": "a b"}))
    assert {row["source"]: row["caption"] for row in _take(folder, captions)} == {video: "the caption", "b.mp4": "a b"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beside", [False, True], ids=["captions file", "sidecars"])
def test_two_files_that_differ_only_in_form_keep_their_captions(tmp_path: Path, name: str, beside: bool) -> None:
    said = {f"{normalize(form, name)}.mp4": form for form in ("NFC", "NFD")}
    folder, captions = _folder(tmp_path, *said), tmp_path / "captions.json"
    if beside:
        for video, caption in said.items():
            (folder / video).with_suffix(".txt").write_text(caption)
    else:
        captions.write_text(json.dumps(said))
    assert {row["source"]: row["caption"] for row in _take(folder, captions)} == said


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("beside", [False, True], ids=["captions file", "sidecars"])
def test_a_caption_of_a_file_is_not_used_for_a_file_whose_name_differs_only_in_form(
    tmp_path: Path, name: str, form: Any, beside: bool
) -> None:
    folder, captions = _folder(tmp_path, *(f"{normalize(f, name)}.mp4" for f in ("NFC", "NFD"))), tmp_path / "c.json"
    if beside:
        (folder / f"{normalize(form, name)}.txt").write_text("mine")
    else:
        captions.write_text(json.dumps({f"{normalize(form, name)}.mp4": "mine"}))
    with pytest.raises(ValueError, match="in different Unicode normalisations") as error:
        _take(folder, captions)
    assert ascii(normalize(form, name))[1:-1] in str(error.value)
    assert not (tmp_path / "raw").exists()


def test_an_error_escapes_a_name_that_looks_like_another(tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"cafe\u0301.mp4": "a", "caf\u00e9.mp4": "b"}))
    with pytest.raises(ValueError, match=r"names videos that are not in .*: 'cafe\\u0301.mp4'"):
        _take(_folder(tmp_path, "caf\u00e9.mp4"), captions)


# --- Captions that match full paths


@pytest.mark.parametrize(
    ("videos", "captions", "missing"),
    [
        (["A/v.mp4", "B/v.mp4"], {"A/v.mp4": "a"}, "B/v.mp4"),
        (["A/v.mp4"], {"v.mp4": "a"}, "A/v.mp4"),
        (["v.mp4"], {"A/v.mp4": "a"}, "v.mp4"),
        (["v.MP4"], {"v.mp4": "a"}, "v.MP4"),
    ],
)
def test_a_captions_file_is_matched_by_full_relative_paths(
    tmp_path: Path, videos: list[str], captions: dict[str, str], missing: str
) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match=f"has no caption for {missing}; add"):
        _take(_folder(tmp_path, *videos), tmp_path / "captions.json")


def test_a_sidecar_matches_only_in_its_folder(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "A/v.mp4", "B/v.mp4", "v.mp4")
    (folder / "A" / "v.txt").write_text("a")
    with pytest.raises(ValueError, match=r"in a .txt file beside B/v.mp4, v.mp4; write one"):
        _take(folder, tmp_path / "captions.json")
    (folder / "B" / "v.txt").write_text("b")
    (folder / "v.txt").write_text("neither")
    assert [row["caption"] for row in _take(folder, tmp_path / "captions.json")] == ["a", "b", "neither"]


# --- Symbolic links in a folder


def test_links_to_videos_folders_and_captions_are_followed(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.mp4")
    disk, blobs = tmp_path / "another disk", tmp_path / "blobs"
    (disk / "deep").mkdir(parents=True)
    blobs.mkdir()
    (disk / "deep" / "b.mp4").write_bytes(b"b")
    (disk / "deep" / "b.txt").write_text("a b")
    (blobs / "0123").write_bytes(b"c")  # the file has no suffix, as in the caches of DVC and the hub
    (folder / "more").symlink_to(disk)
    (folder / "c.mp4").symlink_to(blobs / "0123")
    (folder / "a.txt").write_text("an a")
    (folder / "c.txt").symlink_to(folder / "a.txt")
    rows = _take(folder, tmp_path / "none.json")
    assert {row["source"]: row["caption"] for row in rows} == {
        "a.mp4": "an a",
        "c.mp4": "an a",
        "more/deep/b.mp4": "a b",
    }
    copies = [tmp_path / "raw" / row["path"] for row in rows]
    assert [copy.read_bytes() for copy in copies] == [b"a.mp4", b"c", b"b"]
    assert not any(copy.is_symlink() for copy in copies)


@pytest.mark.parametrize("target", [".", "..", "deep", "../mine"])
def test_a_link_to_a_parent_folder_is_not_entered(tmp_path: Path, target: str) -> None:
    folder = _folder(tmp_path, "deep/a.mp4")
    (folder / "deep" / "a.txt").write_text("an a")
    link = folder / "deep" / "link" if target != "deep" else folder / "deep" / "self"
    link.symlink_to(target if target != "deep" else folder / "deep")
    assert [row["source"] for row in _take(folder, tmp_path / "none.json")] == ["deep/a.mp4"]


def test_a_broken_link_is_passed_over_by_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.mp4")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"a.mp4": "an a", "gone.mp4": "a gone"}))
    assert [row["source"] for row in _take(folder, captions)] == ["a.mp4"]
    (row,) = manifest.read_rows(tmp_path / "raw" / "passed_over.jsonl")
    assert (row["source"], row["code"]) == ("gone.mp4", "broken_link")
    assert "a link to nowhere.mp4, which is not a file" in row["reason"]


def test_folders_that_link_to_each_other_give_each_video_once(tmp_path: Path) -> None:
    names = [f"{letter}/{letter}.mp4" for letter in "abcdefgh"]
    folder = _folder(tmp_path, *names)
    for one in "abcdefgh":
        (folder / one / f"{one}.txt").write_text(f"an {one}")
        for other in "abcdefgh":
            (folder / one / f"link to {other}").symlink_to(f"../{other}")
    assert [row["source"] for row in _take(folder, tmp_path / "none.json")] == names
