"""Params of the stage ``download``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from causvid.params import PathRule


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Params section ``download``.

    Attributes:
        source: Source of the videos.
        folder: Folder with the user's videos, for source folder.
        captions: JSON file {relative path: caption}, for source folder. If the file does not exist, the caption of each
            video is in a .txt file beside the video.
        toy_world_captions: Text file with the captions of the toy world's clips, one per line.
        toy_world_clips: Number of clips to render.
        mixkit_repo: Name of the data set on the hub, owner/name.
        mixkit_revision: Commit, branch or tag of the data set.
        mixkit_files: Pattern of the names of the tar archives in the data set.
        mixkit_captions: Patterns of the names of JSON files with captions, the preferred pattern first.
        limit: Largest number of videos; None = all.
    """

    source: Literal["toy_world", "folder", "mixkit"]
    folder: Annotated[Path, PathRule(may_be_missing=True)]  # only the source folder reads it
    captions: Annotated[Path, PathRule(may_be_missing=True)]  # if missing, captions are .txt files beside the videos
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
