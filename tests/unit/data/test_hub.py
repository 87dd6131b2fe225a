"""A download from a faulty hub gives a correct file or an error, and no bytes are downloaded twice."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from causvid.data import hub
from causvid.data.hub import ATTEMPTS, HubCommit, open_commit
from tests.unit.data.hub_stand_in import COMMIT, FAULTS, REPO, StandIn, serve

CONTENT = random.Random(0).randbytes(300_000)
FILES = {
    "parts/../../up.tar": b"up",
    "parts/deep/down.tar": b"down",
    "parts/a.tar": CONTENT,
    "parts/b.tar": b"b",
    "parts/empty.tar": b"",
    "parts/c.txt": b"c",
    "top.json": b"{}",
}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of the requested pauses in seconds. The test does not wait during these pauses."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[tuple[StandIn, HubCommit]]:
    with serve(dict(FILES)) as stand_in:
        monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=stand_in.url))
        yield stand_in, open_commit(REPO, "main", kind="dataset", folder=folder)


def fetch(commit: HubCommit, path: str = "parts/a.tar") -> bytes:
    (file,) = commit.files(path)
    return commit.fetch(file).read_bytes()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_pattern_matches_files_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(monkeypatch, tmp_path) as (_, commit):
        assert commit.commit == COMMIT
        found = {pattern: [file.path for file in commit.files(pattern)] for pattern in ("parts/*.tar", "*.json", "x/*")}
    assert found == {
        "parts/*.tar": ["parts/a.tar", "parts/b.tar", "parts/empty.tar"],
        "*.json": ["top.json"],
        "x/*": [],
    }


@pytest.mark.parametrize("path", ["parts/a.tar", "parts/b.tar", "parts/empty.tar", "top.json"])
@pytest.mark.parametrize("git", [False, True])
def test_every_file_is_downloaded_once_with_either_kind_of_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, git: bool
) -> None:
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        stand_in.git = set(FILES) if git else set()
        assert [fetch(commit, path), fetch(commit, path)] == [FILES[path]] * 2
        assert stand_in.bytes_asked(path) == [""]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("git", [False, True])
def test_a_bad_response_is_requested_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, git: bool
) -> None:
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        stand_in.git = set(FILES) if git else set()
        stand_in.faults["parts/a.tar"] = [fault]
        assert fetch(commit) == CONTENT
        asked = stand_in.bytes_asked("parts/a.tar")
    # Bytes received before the cut are kept. A full response and a response with another ETag are accepted, because only
    # the checksum of the file decides.
    assert asked == {"cut": ["", "bytes=150000-"], "whole": [""], "etag": [""]}.get(fault, ["", ""])
    assert left(tmp_path) == ["a.tar"]


def test_lost_connections_do_not_end_a_download_that_makes_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        stand_in.faults["parts/a.tar"] = ["cut"] * 12 + ["whole"]
        assert fetch(commit) == CONTENT
    assert not pauses


def test_lost_connections_end_a_download_that_makes_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ignores the requested range sends the same bytes again after each lost connection."""
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        stand_in.faults["parts/a.tar"] = ["whole cut"] * 1000
        with pytest.raises(ValueError, match=rf"gave up after {ATTEMPTS} attempts"):
            fetch(commit)
        assert len(stand_in.bytes_asked("parts/a.tar")) == ATTEMPTS + 1
        stand_in.faults["parts/a.tar"] = ["whole cut", "cut", "whole"]
        assert fetch(commit) == CONTENT


def test_another_process_continues_an_interrupted_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / COMMIT / "parts" / "a.tar.part"
    part.parent.mkdir(parents=True)
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        part.write_bytes(CONTENT[:1000])
        assert fetch(commit) == CONTENT
        (tmp_path / COMMIT / "parts" / "a.tar").unlink()
        # the damaged first byte is detected at the end, and the file is downloaded again
        part.write_bytes(b"x" + CONTENT[1:2000])
        assert fetch(commit) == CONTENT
        (tmp_path / COMMIT / "parts" / "a.tar").unlink()
        part.write_bytes(CONTENT)  # the earlier process was killed before the rename of the complete file
        assert fetch(commit) == CONTENT
        assert stand_in.bytes_asked("parts/a.tar") == ["bytes=1000-", "bytes=2000-", ""]


def test_no_wrong_file_is_accepted_in_200_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(1)
    refused = []
    for number in range(200):
        with opened(monkeypatch, tmp_path / str(number)) as (stand_in, commit):
            size = dice.choice([1, 700, 100_000])
            stand_in.files["parts/a.tar"] = CONTENT[:size]
            stand_in.git = {"parts/a.tar"} if dice.random() < 0.3 else set()
            stand_in.faults["parts/a.tar"] = dice.choices(FAULTS, k=dice.choice([0, 1, 2, 20]))
            stand_in.faults["api"] = dice.choices(["429", "503", "page"], k=dice.randrange(3))
            try:
                assert fetch(commit) == CONTENT[:size]
            except ValueError as error:
                refused.append(str(error))
                assert "a.tar" not in left(tmp_path / str(number))
    assert 0 < len(refused) < 100
    assert all("parts/a.tar: gave up after" in error for error in refused)


def test_every_flipped_bit_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror serves the same damaged file at every attempt. All 200 damaged files are refused and deleted."""
    dice = random.Random(2)
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        (listed,) = commit.files("parts/a.tar")
        for _ in range(200):
            damaged = bytearray(CONTENT)
            for _ in range(dice.choice([1, 3, 40])):
                damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            stand_in.files["parts/a.tar"] = bytes(damaged)
            with pytest.raises(ValueError, match="the downloaded file is damaged"):
                commit.fetch(listed)
            assert not left(tmp_path)


def test_a_failure_that_is_not_temporary_is_raised_immediately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        stand_in.faults["parts/a.tar"] = ["403"]
        with pytest.raises(ValueError, match=f"parts/a.tar: .*403.*; check the access to {REPO}"):
            fetch(commit)
        for repo, revision in (("someone/else", "main"), (REPO, "gone"), ("no//name", "main")):
            with pytest.raises(ValueError, match="does not exist on the hub"):
                open_commit(repo, revision, kind="dataset", folder=tmp_path)
    assert not pauses


def test_the_retry_after_of_the_hub_is_followed_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(monkeypatch, tmp_path) as (stand_in, commit):
        stand_in.retry_after = "7"
        stand_in.faults["parts/a.tar"] = ["429", "503"]
        assert fetch(commit) == CONTENT
        assert pauses == [7.0, 7.0]
        assert "parts/a.tar: 429 Too Many Requests" in capsys.readouterr().err
        stand_in.retry_after = "86400"
        stand_in.faults["parts/b.tar"] = ["429"]
        fetch(commit, "parts/b.tar")
        assert pauses[2:] == [hub.LONGEST_PAUSE]


def test_an_unreachable_hub_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match=f"dataset {REPO}: gave up after {ATTEMPTS} attempts .*refused"):
        open_commit(REPO, "main", kind="dataset", folder=tmp_path)
    assert len(pauses) == ATTEMPTS - 1
    assert max(pauses) <= hub.LONGEST_PAUSE


def test_the_command_publishes_a_complete_folder_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lmdb"
    with opened(monkeypatch, tmp_path / "x") as (stand_in, _):
        stand_in.faults["parts/a.tar"] = ["page"] * ATTEMPTS
        with pytest.raises(SystemExit, match="gave up after"):
            hub.main(REPO, "parts/*", out, dataset=True)
        assert not out.exists()
        hub.main(REPO, "parts/*", out, dataset=True)
        assert left(out) == ["a.tar", "b.tar", "c.txt", "empty.tar"]
        assert f"4 files of {REPO} at commit {COMMIT}" in capsys.readouterr().out
        assert [path.name for path in tmp_path.iterdir()] == ["lmdb"]
        # The folder must not contain the files of an earlier command with another pattern.
        for pattern in ("parts/*.tar", "*.json", "parts/deep/*"):
            stand_in.faults["parts/c.txt"] = ["page"] * ATTEMPTS
            with pytest.raises(SystemExit, match="gave up after"):
                hub.main(REPO, "parts/*", tmp_path / "next", dataset=True)
            hub.main(REPO, pattern, tmp_path / "next", dataset=True)
            wanted = {"*.json": ["top.json"], "parts/deep/*": ["down.tar"]}.get(
                pattern, ["a.tar", "b.tar", "empty.tar"]
            )
            assert left(tmp_path / "next") == wanted
            shutil.rmtree(tmp_path / "next")
        with pytest.raises(SystemExit, match="which exists"):
            hub.main(REPO, "parts/*", out, dataset=True)
        with pytest.raises(SystemExit, match=f"{REPO} has no file that matches gone/"):
            hub.main(REPO, "gone/*", tmp_path / "other", dataset=True)


@pytest.mark.parametrize("status", ["401", "403", "416"])
def test_the_command_reports_a_failure_that_is_not_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    with opened(monkeypatch, tmp_path / "x") as (stand_in, _):
        stand_in.faults["parts/a.tar"] = [status]
        with pytest.raises(SystemExit, match=f"parts/a.tar: .*{status}"):
            hub.main(REPO, "parts/*", tmp_path / "out", dataset=True)
    assert not (tmp_path / "out").exists()
