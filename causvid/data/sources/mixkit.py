"""Download MixKit from the hub: tar archives of videos ("parts"), and JSON files of captions.

Archives are untrusted. The members of an archive are read one after another. A video is written to a file that is named
after the sha256 of its content, never to the file name in the archive. Links, special files, unsafe names and oversized
files are recorded in passed_over.jsonl.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from causvid.data.hub import HubCommit, open_commit
from causvid.data.sources.caption_files import caption_pairs
from causvid.data.sources.caption_match import composed, match_ends
from causvid.data.sources.config import DownloadConfig
from causvid.data.sources.local import VIDEO_SUFFIXES, Row, video_id, write_index
from causvid.data.sources.passed_over import PassedOver
from causvid.harness.progress import progress
from causvid.runtime import text

MEMBERS = 200_000  # largest number of members of one part; all parts of MixKit together have 6484 videos
VIDEO_BYTES = 4 * 2**30  # largest size of a video in bytes
COPY_BYTES = 2**20  # bytes that are copied with one read


def mixkit_videos(out: Path, config: DownloadConfig, *, hub: Path) -> dict[str, Any]:
    """Download MixKit's parts one after another, until the limit is reached, and write the videos in these parts.

    A video without a caption in the data set has the caption None. passed_over.jsonl lists every member, video and
    caption that is passed over, as {source, code, reason}.

    Args:
        out: Folder of the videos and their manifest.
        config: Params section ``download``.
        hub: Folder of the downloads, which may contain the downloads of an interrupted call.

    Returns:
        Numbers of videos, of captions and of rows in passed_over.jsonl, and the commit of the data set.

    Raises:
        ValueError: The repository, the revision or a file does not exist, a download fails, a part is not a valid tar
            archive, or no video can be used.
    """
    repository = open_commit(config.mixkit_repo, config.mixkit_revision, kind="dataset", folder=hub)
    parts = repository.files(config.mixkit_files)
    if not parts:
        raise ValueError(f"download.mixkit_files is {config.mixkit_files}; {config.mixkit_repo} has no such file")
    taken = _Taken(out, config.limit)
    captions = _captions(repository, config.mixkit_captions, taken.passed)
    (out / "videos").mkdir(parents=True)
    read = 0
    for part in progress(parts, total=len(parts), what="MixKit parts"):
        if taken.is_full:
            break
        _take_part(repository.fetch(part), taken)
        read += 1
    if not taken.files:
        raise ValueError(
            f"download.mixkit_files is {config.mixkit_files}; none of the {len(parts)} parts contains a video"
        )
    rows = _captioned(taken, captions, complete=read == len(parts))
    taken.passed.write(out)
    counts = write_index(out, rows)
    return counts | {"passed_over": len(taken.passed.rows), "commit": repository.commit}


class _Taken:
    """The videos in the parts that were read so far. A source is the name of a part and the path in this part.

    Attributes:
        out: Folder of the videos.
        limit: Largest number of videos; None = all.
        passed: The rows of passed_over.jsonl.
        files: Maps the source of each written video to its file.
        sources: Maps the sha256 of a content to all sources with this content; the first source was written.
        paths: Maps the source of every video, including videos that were passed over, to its path in the part.
        member: Name of the last member that was read.
    """

    def __init__(self, out: Path, limit: int | None) -> None:
        self.out = out
        self.limit = limit
        self.passed = PassedOver()
        self.files: dict[str, Path] = {}
        self.sources: dict[str, list[str]] = {}
        self.paths: dict[str, PurePosixPath] = {}
        self.member = ""

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return len(self.files) == self.limit


def _captions(repository: HubCommit, patterns: tuple[str, ...], passed: PassedOver) -> dict[str, str]:
    """Map paths to captions. If two files have a caption for the same path, the caption in the first file is used."""
    files = [file for pattern in patterns for file in repository.files(pattern)]
    if not files:
        places = ", ".join(patterns)
        raise ValueError(f"download.mixkit_captions is {places}; {repository.repo} has no such file")
    captions: dict[str, str] = {}
    for file in files:
        for path, caption in caption_pairs(repository.fetch(file)):
            if reason := text.fault(path):
                passed.add(f"{file.path}: {path}", text.NOT_UTF8, f"the path {reason}")
            else:
                captions.setdefault(path, caption)
    return captions


def _captioned(taken: _Taken, captions: Mapping[str, str], *, complete: bool) -> list[Row]:
    """Build the rows of the manifest. A video whose caption cannot be encoded in UTF-8 is passed over."""
    matched = _matched(taken.paths, captions, complete=complete)
    rows: list[Row] = []
    for sources in taken.sources.values():
        source, file = sources[0], taken.files[sources[0]]
        # Files with the same content are one video. Its caption is that of the first of these files with a caption.
        caption = next((captions[matched[copy]] for copy in sources if copy in matched), None)
        if reason := caption and text.fault(caption):
            file.unlink()
            taken.passed.add(source, text.NOT_UTF8, f"the caption {reason}")
            continue
        shown = file.relative_to(taken.out).as_posix()
        rows.append({"id": video_id(len(rows)), "path": shown, "caption": caption, "source": source})
    if not rows:
        last = taken.passed.rows[-1]
        raise ValueError(f"no video of MixKit can be used, for example {last['source']}: {last['reason']}")
    return rows


def _matched(paths: Mapping[str, PurePosixPath], captions: Iterable[str], *, complete: bool) -> dict[str, str]:
    """Map sources to the paths of their captions. Sources without a caption are omitted.

    The path of a caption is "<part>/<file>". In the part, the path of the file may have any number of folders.

    Args:
        paths: Maps the source of each video to its path in the part.
        captions: Paths of the captions.
        complete: Whether ``paths`` contains the videos of every part.
    """
    folders = {composed(folder) for path in captions for folder in PurePosixPath(path).parent.parts}
    names = {
        source: [f"{part}/{path}", f"{path}"] if composed(part := _part(source)) in folders else [f"{path}"]
        for source, path in paths.items()
    }
    matched = match_ends(names, captions, bare=complete)
    if not complete and len(match_ends(names, captions, bare=True)) > len(matched):
        sys.stderr.write(
            "download.limit leaves parts unread, so captions with a bare file name are ignored: an unread part may "
            "contain a video of the same name\n"
        )
    return matched


def _part(source: str) -> str:
    """Return the name of the part that contains ``source``, without suffix. Paths of captions begin with this name."""
    return PurePosixPath(source.split("/")[0]).stem


def _take_part(part: Path, taken: _Taken) -> None:
    """Write the videos of one part until the limit is reached, and record the paths of all videos in the part."""
    try:
        # The encoding is given, because the default encoding depends on the locale.
        with tarfile.open(part, "r:", encoding="utf-8") as archive:
            for source, member in _plain_videos(archive, part.name, taken):
                _write(archive, member, taken, source)
    except tarfile.TarError as error:
        raise ValueError(
            f"{part.name} has the checksum that the hub lists, but is not a valid tar archive ({error}, after member "
            f"{taken.member!r}); leave it out of download.mixkit_files"
        ) from error


def _plain_videos(archive: tarfile.TarFile, part: str, taken: _Taken) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield (source, member) for each video file that can be used, until the limit is reached."""
    seen: set[str] = set()
    taken.member = ""
    for count, member in enumerate(archive, start=1):
        taken.member = member.name
        archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps every header
        if count > MEMBERS:
            raise ValueError(
                f"{part} has more than {MEMBERS} members, up to {member.name!r}; leave it out of download.mixkit_files"
            )
        name = PurePosixPath(member.name)
        if name.suffix.lower() not in VIDEO_SUFFIXES or member.isdir():
            continue
        source = f"{part}/{name}"
        taken.paths[source] = name
        if taken.is_full:  # later members only provide their paths, because a caption may belong to such a path
            continue
        if refused := _refusal(member, name, again=source in seen):
            taken.passed.add(f"{part}/{member.name}", *refused)
        else:
            seen.add(source)
            yield source, member


def _refusal(member: tarfile.TarInfo, name: PurePosixPath, *, again: bool) -> tuple[str, str] | None:
    """Return the code and the reason why a member is passed over; None for a regular file that can be used."""
    if reason := text.fault(member.name):
        return text.NOT_UTF8, f"the name {reason}"
    if not member.isreg() or member.issparse():
        return "no_plain_file", "the member is a link, a device or a sparse file"
    if name.is_absolute() or ".." in name.parts:
        return "dishonest_name", "the name leads out of its folder"
    if member.size > VIDEO_BYTES:
        return "too_large", f"the video has {member.size} bytes; the limit is {VIDEO_BYTES}"
    if again:
        return "appears_twice", "the name has appeared before in the part"
    return None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, taken: _Taken, source: str) -> None:
    """Write a member to a file that is named after its sha256, unless a file with the same content exists."""
    stream = archive.extractfile(member)
    assert stream is not None, "a regular file has content"
    incoming, digest = taken.out / "videos" / "incoming", hashlib.sha256()
    with stream, incoming.open("wb") as file:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
            file.write(chunk)
    copies = taken.sources.setdefault(digest.hexdigest(), [])
    copies.append(source)
    if copies[0] != source:
        incoming.unlink()
        taken.passed.add(source, "same_content", f"the content is that of {copies[0]}")
        return
    final = digest.hexdigest() + PurePosixPath(member.name).suffix.lower()
    taken.files[source] = incoming.rename(incoming.with_name(final))
