"""Where videos and captions come from: the toy world or a folder of yours; MixKit has causvid.data.mixkit to itself.

Each source fills one folder: videos/... and manifest.jsonl with {id, path, caption, source}, ids in the order of the
sources' names. Nothing is decoded here; what a video is worth is found out when it is resampled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from causvid.data import manifest, toy_world
from causvid.data.caption_files import caption_pairs, named, read_sidecar
from causvid.data.prompt_store import read_prompt_file
from causvid.data.video_writer import write_video
from causvid.data.workers import Lost, run_killable
from causvid.runtime.progress import progress
from causvid.shapes import VideoShape

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
TOY_CRF = 8  # of the toy world's files: near x264's best, so that 4:2:0 colour is the only loss
SECONDS_PER_CLIP = 300.0
CLIP_MEMORY = 4 * 2**30

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Params section ``download``. The stage gets folder and captions as arguments too, where DVC can see them.

    source: which of the three; folder, captions: of source folder, captions {relative path: caption} or absent for .txt
    files beside the videos; toy_world_captions: a file of those its clips show, one a line; toy_world_clips: clips to
    render; mixkit_*: data set, its commit or branch, patterns for its tar parts and for its JSON files of captions, the
    one to prefer first; limit: videos to take at most, None for all.
    """

    source: Literal["toy_world", "folder", "mixkit"]
    folder: Path
    captions: Path
    toy_world_captions: Path
    toy_world_clips: int
    mixkit_repo: str
    mixkit_revision: str
    mixkit_files: str
    mixkit_captions: tuple[str, ...]
    limit: int | None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"download.limit is {self.limit}; it must be at least 1, or null for all videos")
        if self.source == "toy_world" and self.toy_world_clips < 1:
            raise ValueError(f"download.toy_world_clips is {self.toy_world_clips}; it must be at least 1")


def toy_world_videos(
    out: Path, config: DownloadConfig, *, video: VideoShape, seed: int, workers: int
) -> dict[str, Any]:
    """Render the toy world's training clips into ``out``; how many workers do it changes nothing. Returns counts."""
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


def folder_videos(out: Path, config: DownloadConfig, *, folder: Path, captions: Path) -> dict[str, Any]:
    """Copy the videos below ``folder`` into ``out``. Hidden files and other suffixes are no videos. Returns counts.

    Raises ValueError for a missing or empty folder, videos without a caption, captions without a video.
    """
    if not folder.is_dir():
        raise ValueError(f"download.folder is {folder}; there is no such folder")
    names = _video_names(folder)
    if not names:
        raise ValueError(f"download.folder is {folder}; no video ({', '.join(VIDEO_SUFFIXES)}) lies in or below it")
    said = _read_captions(captions, names) if captions.is_file() else _read_sidecars(folder, captions, names)
    (out / "videos").mkdir(parents=True)
    rows = []
    for index, name in enumerate(progress(names[: config.limit], total=len(names[: config.limit]), what="copying")):
        rows.append(_row(index, PurePosixPath(name).suffix.lower(), caption=said[name], source=name))
        # A copy: a hard link would let DVC write-protect, and an edit in place corrupt, what the two share.
        shutil.copyfile(folder / name, out / rows[-1]["path"])
    return write_index(out, rows)


def _video_names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    names = (path.relative_to(folder) for path in paths)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _read_captions(captions: Path, names: list[str]) -> dict[str, str]:
    said = {name: text for name, text in reversed(caption_pairs(captions)) if text}
    if missing := [name for name in names if name not in said]:
        raise ValueError(f"{captions} has no caption for {named(missing)}; add them or take the videos away")
    if unknown := sorted(said.keys() - set(names)):
        raise ValueError(f"{captions} names what is no video of the folder: {named(unknown)}")
    return said


def _read_sidecars(folder: Path, captions: Path, names: list[str]) -> dict[str, str]:
    texts = {name: (folder / name).with_suffix(".txt") for name in names}
    said = {name: read_sidecar(text) for name, text in texts.items() if text.is_file()}
    if missing := [name for name in names if not said.get(name)]:
        raise ValueError(
            f"neither a captions file {captions} nor a caption in a .txt beside {named(missing)}; write one"
        )
    return said


def video_id(index: int) -> str:
    """The id of the video at ``index``; ids sort as the numbers do."""
    return f"{index:06d}"


def write_index(out: Path, rows: list[Row]) -> dict[str, Any]:
    """Write the manifest of a filled folder; return its counts."""
    manifest.write_rows(out / manifest.NAME, rows)
    captions = [row["caption"] for row in rows if row["caption"]]
    return {"videos": len(rows), "distinct_captions": len(set(captions)), "without_caption": len(rows) - len(captions)}


def _path(index: int, suffix: str) -> str:
    return f"videos/{video_id(index)}{suffix}"


def _row(index: int, suffix: str, *, caption: str | None, source: str) -> Row:
    return {"id": video_id(index), "path": _path(index, suffix), "caption": caption, "source": source}
