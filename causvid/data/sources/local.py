"""Collect videos and captions from the toy world or from a folder of the user.

Each source fills one folder with videos/ and manifest.jsonl, whose rows are {id, path, caption, source}. This module
does not decode videos; the stage resample rejects videos that cannot be used.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from causvid.data.prompt_file import read_prompt_file
from causvid.data.sources import toy_world
from causvid.data.sources.caption_files import caption_pairs, named, read_sidecar
from causvid.data.sources.caption_match import composed, match
from causvid.data.sources.config import DownloadConfig
from causvid.data.sources.passed_over import PassedOver
from causvid.data.videos import manifest
from causvid.data.videos.video_writer import write_video
from causvid.data.workers import Lost, run_killable
from causvid.harness.progress import progress
from causvid.runtime import text
from causvid.runtime.shapes import VideoShape

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
TOY_CRF = 8  # for the videos of the toy world; nearly lossless, so that 4:2:0 colour is the only visible loss
SECONDS_PER_CLIP = 300.0  # time limit of a rendering process
CLIP_MEMORY = 4 * 2**30  # bytes

Row = dict[str, Any]


def toy_world_videos(
    out: Path, config: DownloadConfig, *, video: VideoShape, seed: int, workers: int
) -> dict[str, Any]:
    """Render the training clips of the toy world.

    Args:
        out: Folder of the videos and their manifest.
        config: Params section ``download``.
        video: Size, frame rate and number of frames of the clips.
        seed: Seed from which the order of the captions, the start positions and the radii are drawn.
        workers: Number of processes. The result does not depend on this number.

    Returns:
        Numbers of videos and captions.

    Raises:
        ValueError: The file of captions is missing or empty, or a caption does not describe a scene of the toy world.
        RuntimeError: A clip exceeded the limits of its process.
    """
    count = min(config.toy_world_clips, config.limit or config.toy_world_clips)
    known = read_prompt_file(config.toy_world_captions, "download.toy_world_captions")
    captions = toy_world.clip_captions(known, count, seed=seed)
    (out / "videos").mkdir(parents=True)
    write = partial(_write_toy_clip, out=out, video=video, seed=seed)
    jobs = list(enumerate(captions))
    if workers == 1:
        done: Iterator[tuple[tuple[int, str], Lost | None]] = ((job, write(job)) for job in jobs)
    else:
        done = run_killable(write, jobs, workers=min(workers, len(jobs)), seconds=SECONDS_PER_CLIP, memory=CLIP_MEMORY)
    for (index, _), result in progress(done, total=len(jobs), what="rendering the toy world"):
        if result is not None:
            raise RuntimeError(f"clip {index} of the toy world was not written: {result.reason}")
    rows = [_row(i, ".mp4", caption=caption, source=f"toy_world/{video_id(i)}") for i, caption in jobs]
    return write_index(out, rows)


def _write_toy_clip(job: tuple[int, str], *, out: Path, video: VideoShape, seed: int) -> None:
    index, caption = job
    frames = toy_world.clip_frames(caption, index, video=video, seed=seed)
    write_video(out / _path(index, ".mp4"), frames, fps=video.fps, crf=TOY_CRF)


def folder_videos(out: Path, config: DownloadConfig) -> dict[str, Any]:
    """Copy the videos in ``config.folder`` and its subfolders, without hidden files, into ``out``.

    Links to files and folders are followed. A video is passed over if its name or its caption cannot be encoded in
    UTF-8, or if it is a broken link. The reason is written to passed_over.jsonl.

    Returns:
        Numbers of videos, of captions and of rows in passed_over.jsonl.

    Raises:
        ValueError: The folder is missing or empty, a video has no caption, a caption has no video, or every video is
            passed over.
    """
    folder, captions = config.folder, config.captions
    if not folder.is_dir():
        raise ValueError(f"download.folder is {folder}, which is not a folder; name an existing one")
    names = _video_names(folder)
    if not names:
        raise ValueError(
            f"download.folder is {folder}, which has no video ({', '.join(VIDEO_SUFFIXES)}); name the folder of your "
            "videos"
        )
    passed = PassedOver()
    read = _read_captions if captions.is_file() else _read_sidecars
    caption_of = read(
        folder, captions, [name for name in names if not _has_fault(name, "the name", name, passed)], passed
    )
    kept = [
        name for name in names if name in caption_of and not _has_fault(caption_of[name], "the caption", name, passed)
    ]
    kept = [name for name in kept if not _leads_nowhere(folder / name, name, passed)]
    if not kept:
        last = passed.rows[-1]
        raise ValueError(
            f"download.folder is {folder}; no video can be used, for example {last['source']}: {last['reason']}"
        )
    (out / "videos").mkdir(parents=True)
    rows = []
    for index, name in enumerate(progress(kept[: config.limit], total=len(kept[: config.limit]), what="copying")):
        rows.append(_row(index, PurePosixPath(name).suffix.lower(), caption=caption_of[name], source=name))
        # Not a hard link: DVC would write-protect the user's file, and an edit of that file would corrupt the copy.
        shutil.copyfile(folder / name, out / rows[-1]["path"])
    passed.write(out)
    return write_index(out, rows) | {"passed_over": len(passed.rows)}


def _has_fault(value: str, what: str, source: str, passed: PassedOver) -> bool:
    """Return whether ``value`` cannot be encoded in UTF-8. If so, add a row for ``source`` with ``what`` as subject."""
    reason = text.fault(value)
    if reason is not None:
        passed.add(source, text.NOT_UTF8, f"{what} {reason}")
    return reason is not None


def _video_names(folder: Path) -> list[str]:
    names = (name for name in _names_below(folder) if name.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _names_below(folder: Path) -> Iterator[PurePosixPath]:
    """Yield the relative paths of all files in ``folder`` and its subfolders, including files and folders behind links.

    Each folder is entered once, even if several links lead to it. Broken links are included; pipes and devices are not.
    """
    seen: set[tuple[int, int]] = set()
    # Links are followed last, so that a folder is entered under its real name.
    real, linked = [folder], deque[Path]()
    while real or linked:
        here = real.pop() if real else linked.popleft()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in sorted(here.iterdir()):
            if path.is_dir():
                (linked if path.is_symlink() else real).append(path)
            elif path.is_file() or path.is_symlink():
                yield PurePosixPath(path.relative_to(folder).as_posix())


def _leads_nowhere(path: Path, name: str, passed: PassedOver) -> bool:
    """Return whether ``path`` is a broken link. If so, add a row for ``name`` to ``passed``."""
    if not path.is_file():
        passed.add(
            name, "broken_link", f"the video is a link to {text.escaped(str(path.readlink()))}, which is not a file"
        )
        return True
    return False


def _read_captions(folder: Path, captions: Path, names: list[str], passed: PassedOver) -> dict[str, str]:
    """Read the captions of the videos ``names`` from one file.

    Entries whose path cannot be encoded in UTF-8 are passed over.
    """
    caption_of = {path: caption for path, caption in reversed(caption_pairs(captions)) if caption}
    for path in [path for path in caption_of if text.fault(path)]:
        del caption_of[path]
        if not (folder / path).is_file():  # otherwise the video was passed over for the same reason
            passed.add(f"{captions.name}: {path}", text.NOT_UTF8, f"the path {text.fault(path)}")
    matched = match({name: [name] for name in names}, {path: [path] for path in caption_of})
    if missing := [name for name in names if name not in matched]:
        _refuse_lookalikes(missing, caption_of, f"{captions} names")
        raise ValueError(f"{captions} has no caption for {named(missing)}; add captions or remove the videos")
    if unknown := sorted(caption_of.keys() - set(matched.values())):
        raise ValueError(
            f"{captions} names videos that are not in {folder}: {named(unknown)}; add these videos or correct the names"
        )
    return {name: caption_of[path] for name, path in matched.items()}


def _read_sidecars(folder: Path, captions: Path, names: list[str], passed: PassedOver) -> dict[str, str]:
    """Read the caption of each video in ``names`` from the .txt file beside it.

    A video whose .txt file is not UTF-8 is passed over.
    """
    stems = {name: PurePosixPath(name).with_suffix("").as_posix() for name in names}
    texts = [name.with_suffix("").as_posix() for name in _names_below(folder) if name.suffix == ".txt"]
    matched = match({stem: [stem] for stem in stems.values()}, {stem: [stem] for stem in texts})
    caption_of = {}
    for name, stem in stems.items():
        try:
            file = f"{matched[stem]}.txt" if stem in matched else None
            caption_of[name] = read_sidecar(folder / file, f"the caption {file}") if file else ""
        except ValueError as error:
            passed.add(name, text.NOT_UTF8, str(error))
    if missing := [name for name, caption in caption_of.items() if not caption]:
        _refuse_lookalikes([stems[name] for name in missing if stems[name] not in matched], texts, "the .txt files are")
        raise ValueError(
            f"there is no captions file {captions}, and no caption in a .txt file beside {named(missing)}; write one"
        )
    return caption_of


def _refuse_lookalikes(missing: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise ValueError if a video without a caption and one of ``names`` differ only in Unicode normalisation."""
    forms = {composed(name) for name in missing}
    if alike := [ascii(name) for name in sorted(names) if composed(name) in forms]:
        raise ValueError(
            f"{what} {named(alike)}; several videos or captions have the same name in different Unicode "
            "normalisations (composed or decomposed accents); give every video a caption under its exact name"
        )


def video_id(index: int) -> str:
    """Return the id of video ``index``. Ids sorted as strings are in the order of their indices."""
    return f"{index:06d}"


def write_index(out: Path, rows: list[Row]) -> dict[str, Any]:
    """Write the manifest of ``out``, and return the numbers of videos and captions."""
    manifest.write_rows(out / manifest.NAME, rows)
    captions = [row["caption"] for row in rows if row["caption"]]
    return {"videos": len(rows), "distinct_captions": len(set(captions)), "without_caption": len(rows) - len(captions)}


def _path(index: int, suffix: str) -> str:
    return f"videos/{video_id(index)}{suffix}"


def _row(index: int, suffix: str, *, caption: str | None, source: str) -> Row:
    return {"id": video_id(index), "path": _path(index, suffix), "caption": caption, "source": source}
