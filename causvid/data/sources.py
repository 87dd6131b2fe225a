"""Where videos and captions come from: the toy world, a folder of yours, MixKit from the hub.

Each source fills one folder: videos/<id><suffix> and manifest.jsonl with {id, path, caption, source}, ids in the order
of the sources' names. Nothing is decoded here; what a video is worth is found out when it is resampled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from causvid.data import manifest, toy_world
from causvid.data.prompt_store import read_prompt_file
from causvid.data.video_writer import write_video
from causvid.data.workers import Lost, run_killable
from causvid.runtime.progress import progress
from causvid.shapes import VideoShape

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
TOY_CRF = 8  # of the toy world's files: near x264's best, so that 4:2:0 colour is the only loss
SECONDS_PER_CLIP = 300.0
MIXKIT_CAPTIONS = "anno_jsons"  # folder of the data set's caption files
NAMED = 5  # names an error lists before it counts the rest

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Params section ``download``. The stage gets folder and captions as arguments too, where DVC can see them.

    source: which of the three; folder, captions: of source folder, captions {relative path: caption} or absent for .txt
    files beside the videos; toy_world_captions: a file of those its clips show, one a line; toy_world_clips: clips to
    render; mixkit_*: repository, its commit or branch, the folder of its tar parts; limit: videos to take at most, None
    for all.
    """

    source: Literal["toy_world", "folder", "mixkit"]
    folder: Path
    captions: Path
    toy_world_captions: Path
    toy_world_clips: int
    mixkit_repo: str
    mixkit_revision: str
    mixkit_folder: str
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
        done = run_killable(write, jobs, workers=min(workers, len(jobs)), seconds=SECONDS_PER_CLIP)
    for (index, _), result in progress(done, total=len(jobs), what="rendering the toy world"):
        if result is not None:
            raise RuntimeError(f"clip {index} of the toy world was not written: {result.reason}")
    rows = [_row(i, ".mp4", caption=caption, source=f"toy_world/{_id(i)}") for i, caption in jobs]
    manifest.write_rows(out / manifest.NAME, rows)
    return _counts(rows)


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
    manifest.write_rows(out / manifest.NAME, rows)
    return _counts(rows)


def _video_names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    names = (path.relative_to(folder) for path in paths)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _read_captions(captions: Path, names: list[str]) -> dict[str, str]:
    said = {name: text for name, text in reversed(_caption_pairs(captions)) if text}
    if missing := [name for name in names if name not in said]:
        raise ValueError(f"{captions} has no caption for {_named(missing)}; add them or take the videos away")
    if unknown := sorted(said.keys() - set(names)):
        raise ValueError(f"{captions} names what is no video of the folder: {_named(unknown)}")
    return said


def _read_sidecars(folder: Path, captions: Path, names: list[str]) -> dict[str, str]:
    texts = {name: (folder / name).with_suffix(".txt") for name in names}
    said = {name: _one_line(_text(text)) for name, text in texts.items() if text.is_file()}
    if missing := [name for name in names if not said.get(name)]:
        raise ValueError(
            f"neither a captions file {captions} nor a caption in a .txt beside {_named(missing)}; write one"
        )
    return said


def mixkit_videos(out: Path, config: DownloadConfig, *, hub: Path) -> dict[str, Any]:
    """Fetch MixKit's tar parts into ``hub``, which may hold those of an earlier try, and their videos into ``out``.

    Part after part, none after the limit is reached. A video the data set has no caption for gets a null one. Returns
    counts and the commit that was read. Raises ValueError for a repository, revision or folder that is not there, parts
    that arrived damaged, and when no video is found.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = str(HfApi().dataset_info(config.mixkit_repo, revision=config.mixkit_revision).sha)
        repository = _Hub(api=HfApi(), repo=config.mixkit_repo, commit=commit, folder=hub)
        parts = repository.files(config.mixkit_folder, suffix=".tar")
        said = _mixkit_captions(repository, config.mixkit_folder)
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise ValueError(
            f"download.mixkit_repo {config.mixkit_repo} (revision {config.mixkit_revision}, folder "
            f"{config.mixkit_folder}) is not on the hub: {str(error).splitlines()[0]}"
        ) from error
    (out / "videos").mkdir(parents=True)
    rows: list[Row] = []
    for part in progress(parts, total=len(parts), what="MixKit parts"):
        room = None if config.limit is None else config.limit - len(rows)
        if room != 0:
            rows += islice(_part_videos(repository.fetch(part), out, said, first=len(rows)), room)
    if not rows:
        raise ValueError(f"download.mixkit_folder {config.mixkit_folder} holds no tar part with a video in it")
    manifest.write_rows(out / manifest.NAME, rows)
    return _counts(rows) | {"commit": commit}


@dataclass(frozen=True, kw_only=True)
class _Hub:
    """One commit of a data set on the hub, and the local folder its files are fetched into."""

    api: HfApi
    repo: str
    commit: str
    folder: Path

    def files(self, folder: str, *, suffix: str, prefix: str = "") -> list[RepoFile]:
        """The files directly in ``folder`` with these name ends, sorted. Raises EntryNotFoundError."""
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(self.repo, folder, revision=self.commit, repo_type="dataset")
        named = {PurePosixPath(entry.path): entry for entry in tree if isinstance(entry, RepoFile)}
        inside = sorted(path for path in named if path.parent == PurePosixPath(folder))
        return [named[path] for path in inside if path.suffix == suffix and path.name.startswith(prefix)]

    def fetch(self, file: RepoFile) -> Path:
        """Download a file unless it is here. Raises ValueError when its content is not what the hub says."""
        path = Path(
            self.api.hf_hub_download(
                self.repo, file.path, repo_type="dataset", revision=self.commit, local_dir=self.folder
            )
        )
        if file.lfs is not None:  # the hub's client compares sizes only
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != file.lfs.sha256:
                path.unlink()
                wanted = file.lfs.sha256
                raise ValueError(f"{file.path} arrived damaged (sha256 {found}, not {wanted}); run the stage again")
        return path


def _mixkit_captions(repository: _Hub, folder: str) -> dict[str, str]:
    """Captions by path and by bare file name, from the JSON files beside the parts and in the data set's own place."""
    from huggingface_hub.errors import EntryNotFoundError

    files = repository.files(folder, suffix=".json")
    with suppress(EntryNotFoundError):  # then they must lie beside the parts
        files += repository.files(MIXKIT_CAPTIONS, suffix=".json", prefix="video_mixkit")
    if not files:
        places = f"{folder}/*.json and {MIXKIT_CAPTIONS}/video_mixkit*.json"
        raise ValueError(f"{repository.repo} has no captions: there is nothing at {places}")
    said: dict[str, str] = {}
    for file in files:
        for path, caption in _caption_pairs(repository.fetch(file)):
            said.setdefault(path, caption)
    for path in list(said):
        said.setdefault(PurePosixPath(path).name, said[path])
    return said


def _part_videos(part: Path, out: Path, said: Mapping[str, str], *, first: int) -> Iterator[Row]:
    """Write the videos of one tar part under our own names; yield their rows, numbered from ``first``."""
    index = first
    try:
        with tarfile.open(part, "r:") as archive:
            for name, member in _plain_videos(archive, part.name):
                # Captions know a video as "<part>/<file>", the part itself may hold it under more folders or none.
                steps = (part.stem, *PurePosixPath(name).parts)
                tails = ("/".join(steps[start:]) for start in range(len(steps)))
                caption = next((said[tail] for tail in tails if tail in said), None)
                suffix = PurePosixPath(name).suffix.lower()
                row = _row(index, suffix, caption=caption, source=f"{part.name}/{name}")
                stream = archive.extractfile(member)
                assert stream is not None, "a regular file has content"
                with stream, (out / row["path"]).open("wb") as file:
                    shutil.copyfileobj(stream, file)
                yield row
                index += 1
    except tarfile.TarError as error:
        raise ValueError(f"{part} is no sound tar archive ({error}); delete it and run the stage again") from error


def _plain_videos(archive: tarfile.TarFile, part: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular video files with honest names, each once. What else claims to be one is passed over, on stderr."""
    seen = set()
    for member in archive:
        name = PurePosixPath(member.name)
        if name.suffix.lower() not in VIDEO_SUFFIXES or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            reason = "is a link, a device or sparse"
        elif name.is_absolute() or ".." in name.parts:
            reason = "has a name that leaves its folder"
        elif name in seen:
            reason = "appears twice"
        else:
            seen.add(name)
            yield name.as_posix(), member
            continue
        print(f"{part}: passed over {member.name!r}, which {reason}", file=sys.stderr)


def _caption_pairs(file: Path) -> list[tuple[str, str]]:
    """(path, caption) of a captions file, the one to prefer first: {path: caption} or [{path, cap, frame_idx}].

    In a list a video may stand several times, for stretches of frames "start:end"; the earliest comes first, as clips
    are made of a video's beginning; of several captions the first is taken. Raises ValueError.
    """
    try:
        value = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    try:
        if isinstance(value, dict):
            pairs = list(value.items())
        else:
            early = sorted(value, key=lambda entry: int(str(entry.get("frame_idx", "0")).split(":")[0]))
            pairs = [(e["path"], e["cap"][0] if isinstance(e["cap"], list) else e["cap"]) for e in early]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is neither {{path: caption}} nor a list of {{path, cap}} ({error!r})") from error
    if wrong := [path for path, caption in pairs if not isinstance(caption, str)]:
        raise ValueError(f"{file}: the caption of {_named(wrong)} is no text")
    return [(PurePosixPath(path).as_posix(), _one_line(caption)) for path, caption in pairs]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _id(index: int) -> str:
    return f"{index:06d}"


def _path(index: int, suffix: str) -> str:
    return f"videos/{_id(index)}{suffix}"


def _row(index: int, suffix: str, *, caption: str | None, source: str) -> Row:
    return {"id": _id(index), "path": _path(index, suffix), "caption": caption, "source": source}


def _counts(rows: list[Row]) -> dict[str, Any]:
    captions = [row["caption"] for row in rows if row["caption"]]
    return {"videos": len(rows), "distinct_captions": len(set(captions)), "without_caption": len(rows) - len(captions)}
