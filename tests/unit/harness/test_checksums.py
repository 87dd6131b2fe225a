"""Checksums of files and folders depend on content only, and links are followed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from causvid.harness import checksums
from causvid.harness.checksums import ABSENT, REMEMBERED_FROM, Checksums

OLD, NEW = b"o" * REMEMBERED_FROM, b"n" * REMEMBERED_FROM


@pytest.fixture
def take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checksums:
    """Return checksums that remember every file immediately, even a file that has just changed."""
    monkeypatch.setattr(checksums, "SETTLED", -1.0)
    return Checksums(tmp_path / "memory" / "checksums.db")


def in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def renamed_over(path: Path, content: bytes) -> None:
    path.with_name("beside").write_bytes(content)
    path.with_name("beside").replace(path)


def removed_and_made(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def copied_over(path: Path, content: bytes) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(content)
    shutil.copyfile(beside, path)
    beside.unlink()


@pytest.mark.parametrize("change", [in_place, renamed_over, removed_and_made, copied_over])
@pytest.mark.parametrize("inside", ["", "sub/deep"])
def test_changed_content_of_the_same_size_and_time_changes_the_checksum(
    tmp_path: Path, take: Checksums, change: Callable[[Path, bytes], None], inside: str
) -> None:
    folder = tmp_path / "in" / inside
    folder.mkdir(parents=True)
    file = folder / "captions.json"
    file.write_bytes(OLD)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    before = take.of(tmp_path / "in")
    change(file, NEW)
    os.utime(file, ns=times)
    assert file.stat().st_mtime_ns == times[1]
    assert take.of(tmp_path / "in") != before
    change(file, OLD)
    os.utime(file, ns=times)
    assert take.of(tmp_path / "in") == before


def test_an_unchanged_large_file_is_read_once(tmp_path: Path, take: Checksums, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(OLD)
    first = take.of(tmp_path / "weights")
    monkeypatch.setattr(checksums, "_digest", lambda path: pytest.fail(f"{path} is read again"))
    assert take.of(tmp_path / "weights") == first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    """A later change of the file may keep the same times, so the checksum of a recent file is not remembered."""
    (tmp_path / "weights").write_bytes(OLD)
    Checksums(tmp_path / "memory").of(tmp_path / "weights")
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize("memory", ["folder", "weights", "locked", "weights/below"])
def test_an_unusable_memory_file_does_not_change_a_checksum(
    tmp_path: Path, take: Checksums, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    (tmp_path / "weights").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    expected = take.of(tmp_path / "weights")
    connect = partial(sqlite3.connect, timeout=0)
    monkeypatch.setattr(sqlite3, "connect", connect)
    with closing(connect(tmp_path / "locked")) as database:
        database.execute("begin exclusive")
        assert Checksums(tmp_path / memory).of(tmp_path / "weights") == expected
        database.rollback()
    assert (tmp_path / "weights").read_bytes() == OLD


@pytest.mark.parametrize("name", ["$HOME", "~", "%41 ?#", "it's"])
def test_the_memory_file_has_exactly_the_given_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(checksums, "SETTLED", -1.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(OLD)
    Checksums(Path(name, "checksums.db")).of(tmp_path / "weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "weights"])
    assert [path.name for path in (tmp_path / name).iterdir()] == ["checksums.db"]


@pytest.mark.parametrize("path", ["nothing", "nothing/below", "file/below", "dangling"])
def test_a_missing_path_is_absent(tmp_path: Path, take: Checksums, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert take.of(tmp_path / path) == ABSENT


def test_a_missing_path_an_empty_folder_and_an_empty_file_differ(tmp_path: Path, take: Checksums) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert len({take.of(tmp_path / name) for name in ("folder", "file", "none")}) == 3


def test_a_link_has_the_checksum_of_its_target(tmp_path: Path, take: Checksums) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("1")
    for link, target in (("folder", elsewhere), ("link to a link", tmp_path / "folder"), ("file", elsewhere / "a")):
        (tmp_path / link).symlink_to(target)
    assert take.of(tmp_path / "folder") == take.of(tmp_path / "link to a link") == take.of(elsewhere)
    assert take.of(tmp_path / "file") == take.of(elsewhere / "a")
    holder = tmp_path / "holder"
    holder.mkdir()
    (holder / "sub").symlink_to(elsewhere)  # DVC does not follow a link inside a folder
    before = take.of(holder)
    (elsewhere / "a").write_text("2")
    assert take.of(holder) != before


def test_broken_and_circular_links_count_by_their_text(tmp_path: Path, take: Checksums) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, target in (("up", ".."), ("here", "."), ("self", "self"), ("gone", "nowhere")):
        (folder / name).symlink_to(target)
    before = take.of(folder)
    assert before == take.of(folder)
    (folder / "gone").unlink()
    (folder / "gone").symlink_to("elsewhere")
    assert take.of(folder) != before


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"\xff\xfe", b"a\nb", "über.mp4".encode()])
def test_file_names_of_any_encoding_change_the_checksum(tmp_path: Path, take: Checksums, name: bytes) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    empty = take.of(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("x")
    assert take.of(folder) != empty


def test_a_pipe_is_not_opened(tmp_path: Path, take: Checksums) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe")
    assert len(take.of(tmp_path / "in")) == 64


def test_file_names_and_the_border_between_files_change_the_checksum(tmp_path: Path, take: Checksums) -> None:
    for folder, files in (("a", {"x": "12", "y": "3"}), ("b", {"x": "1", "y": "23"}), ("c", {"x": "12", "z": "3"})):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    assert len({take.of(tmp_path / folder) for folder in "abc"}) == 3


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path, take: Checksums) -> None:
    for one in "abcdefgh":
        (tmp_path / "in" / one).mkdir(parents=True)
        (tmp_path / "in" / one / "file").write_text(one)
        for other in "abcdefgh":
            (tmp_path / "in" / one / f"link to {other}").symlink_to(f"../{other}")
    before = take.of(tmp_path / "in")
    (tmp_path / "in" / "h" / "file").write_text("another")
    assert take.of(tmp_path / "in") != before
