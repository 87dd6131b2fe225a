"""Captions that lie beside videos: JSON files of many, a text file of one."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

NAMED = 5  # names an error lists before it counts the rest


def caption_pairs(file: Path) -> list[tuple[str, str]]:
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
        raise ValueError(f"{file}: the caption of {named(wrong)} is no text")
    return [(PurePosixPath(path).as_posix(), _one_line(caption)) for path, caption in pairs]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def read_sidecar(file: Path) -> str:
    """The caption that a text file is. Raises ValueError."""
    return _one_line(_text(file))


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def named(names: list[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
