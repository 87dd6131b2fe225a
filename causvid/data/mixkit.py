"""MixKit from the hub: tar parts of other people's videos, and JSON files of captions.

An archive is untrusted. Its members are read one after another and never extracted by name: a video is written under
the sha256 of its content, and what is no plain file with an honest name and size becomes a row that says why.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from causvid.data import manifest
from causvid.data.caption_files import caption_pairs
from causvid.data.hub import HubCommit, open_commit
from causvid.data.sources import VIDEO_SUFFIXES, DownloadConfig, Row, video_id, write_index
from causvid.runtime.progress import progress

PASSED_OVER = "passed_over.jsonl"
MEMBERS = 200_000  # of one part, whatever they are: MixKit has 6484 videos in all
VIDEO_BYTES = 4 * 2**30
COPY_BYTES = 2**20
SAID = 5  # members passed over that are said on stderr; all of them become rows


def mixkit_videos(out: Path, config: DownloadConfig, *, hub: Path) -> dict[str, Any]:
    """Fetch MixKit's tar parts into ``hub``, which may hold those of an earlier try, and their videos into ``out``.

    Part after part, none after the limit is reached. A video the data set has no caption for gets a null one. What is
    passed over stands in passed_over.jsonl with {source, code, reason}. Returns counts and the commit that was read.
    Raises ValueError for a repository, revision or files that are not there, parts that never arrive sound or are no
    archives, and when no video is found.
    """
    repository = open_commit(config.mixkit_repo, config.mixkit_revision, kind="dataset", folder=hub)
    parts = repository.files(config.mixkit_files)
    if not parts:
        raise ValueError(f"download.mixkit_files is {config.mixkit_files}; {config.mixkit_repo} has no such file")
    said = _captions(repository, config.mixkit_captions)
    (out / "videos").mkdir(parents=True)
    taken = _Taken(out)
    for part in progress(parts, total=len(parts), what="MixKit parts"):
        for row in _part_videos(repository.fetch(part), taken, said):
            taken.rows.append(row)
            if len(taken.rows) == config.limit:
                break
        if len(taken.rows) == config.limit:
            break
    if len(taken.passed_over) > SAID:
        sys.stderr.write(f"and {len(taken.passed_over) - SAID} more were passed over: see {PASSED_OVER}\n")
    if not taken.rows:
        raise ValueError(f"download.mixkit_files is {config.mixkit_files}; no video lies in the {len(parts)} parts")
    manifest.write_rows(out / PASSED_OVER, taken.passed_over)
    counts = write_index(out, taken.rows)
    return counts | {"passed_over": len(taken.passed_over), "commit": repository.commit}


class _Taken:
    """What has come into ``out`` so far, of all parts, and what has not."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: list[Row] = []
        self.passed_over: list[Row] = []
        self.sources: dict[str, str] = {}  # sha256 → source
        self.member = ""  # the last one looked at

    def pass_over(self, source: str, code: str, reason: str) -> None:
        if len(self.passed_over) < SAID:
            sys.stderr.write(f"passed over {source!r}: {reason}\n")
        self.passed_over.append({"source": source, "code": code, "reason": reason})


def _captions(repository: HubCommit, patterns: tuple[str, ...]) -> dict[str, str]:
    """Captions by path and by bare file name; of two for one path the first file's."""
    files = [file for pattern in patterns for file in repository.files(pattern)]
    if not files:
        places = ", ".join(patterns)
        raise ValueError(f"download.mixkit_captions is {places}; {repository.repo} has nothing there")
    said: dict[str, str] = {}
    for file in files:
        for path, caption in caption_pairs(repository.fetch(file)):
            said.setdefault(path, caption)
    for path in list(said):
        said.setdefault(PurePosixPath(path).name, said[path])
    return said


def _part_videos(part: Path, taken: _Taken, said: Mapping[str, str]) -> Iterator[Row]:
    """Write the videos of one tar part; yield their rows."""
    try:
        with tarfile.open(part, "r:") as archive:
            for name, member in _plain_videos(archive, part.name, taken):
                source = f"{part.name}/{name}"
                path = _write(archive, member, taken, source)
                if path is None:
                    continue
                # Captions know a video as "<part>/<file>", the part itself may hold it under more folders or none.
                steps = (part.stem, *PurePosixPath(name).parts)
                tails = ("/".join(steps[start:]) for start in range(len(steps)))
                caption = next((said[tail] for tail in tails if tail in said), None)
                shown = path.relative_to(taken.out).as_posix()
                yield {"id": video_id(len(taken.rows)), "path": shown, "caption": caption, "source": source}
    except tarfile.TarError as error:
        raise ValueError(
            f"{part.name} has the sum the hub lists, but is no sound tar archive ({error}, after member "
            f"{taken.member!r}); leave it out of download.mixkit_files"
        ) from error


def _plain_videos(archive: tarfile.TarFile, part: str, taken: _Taken) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular video files with honest names and sizes, each once."""
    seen = set()
    taken.member = ""
    for count, member in enumerate(archive, start=1):
        taken.member = member.name
        archive.members.clear()  # type: ignore[attr-defined] # every header read would be kept
        if count > MEMBERS:
            raise ValueError(f"{part} has more than {MEMBERS} members; the reading stopped at {member.name!r}")
        name = PurePosixPath(member.name)
        if name.suffix.lower() not in VIDEO_SUFFIXES or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            code, reason = "no_plain_file", "it is a link, a device or sparse"
        elif name.is_absolute() or ".." in name.parts:
            code, reason = "dishonest_name", "its name leaves its folder"
        elif member.size > VIDEO_BYTES:
            code, reason = "too_large", f"it has {member.size} bytes; at most {VIDEO_BYTES} are taken"
        elif name in seen:
            code, reason = "appears_twice", "its name has appeared before"
        else:
            seen.add(name)
            yield name.as_posix(), member
            continue
        taken.pass_over(f"{part}/{member.name}", code, reason)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, taken: _Taken, source: str) -> Path | None:
    """Write a member under its content's name; None when that content is there already."""
    stream = archive.extractfile(member)
    assert stream is not None, "a regular file has content"
    incoming, digest = taken.out / "videos" / "incoming", hashlib.sha256()
    with stream, incoming.open("wb") as file:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
            file.write(chunk)
    earlier = taken.sources.setdefault(digest.hexdigest(), source)
    if earlier != source:
        incoming.unlink()
        taken.pass_over(source, "same_content", f"it is {earlier} again, byte for byte")
        return None
    return incoming.rename(incoming.with_name(digest.hexdigest() + PurePosixPath(member.name).suffix.lower()))
