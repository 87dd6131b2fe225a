"""Captions that lie beside videos: JSON files of many, a text file of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from causvid.data.sources.caption_match import composed
from causvid.runtime import text

NAMED = 5  # names an error lists before it counts the rest


def caption_pairs(file: Path) -> list[tuple[str, str]]:
    """(path, caption) of a captions file, the one to prefer first: {path: caption} or [{path, cap, frame_idx}].

    In a list a video may stand several times, for stretches of frames "start:end"; the earliest comes first, as clips
    are made of a video's beginning; of several captions the first is taken. JSON can spell halves of surrogate pairs:
    paths and captions may hold them. Raises ValueError.
    """
    try:
        value = json.loads(text.decode(file.read_bytes(), str(file)))
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
    if odd := [repr(path) for path, _ in pairs if not isinstance(path, str)]:
        raise ValueError(f"{file}: the path {named(odd)} is no text")
    if wrong := [path for path, caption in pairs if not isinstance(caption, str)]:
        raise ValueError(f"{file}: the caption of {named(wrong)} is no text")
    return [(PurePosixPath(path).as_posix(), _one_line(caption)) for path, caption in pairs]


def read_sidecar(file: Path, name: str) -> str:
    """The caption that a text file is, which the user knows as ``name``. Raises ValueError when it is not UTF-8."""
    return _one_line(text.decode(file.read_bytes(), name))


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def named(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are. A name that looks like another one is escaped."""
    shown = [name if name == composed(name) and text.fault(name) is None else ascii(name) for name in names[:NAMED]]
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(shown) + rest
