"""Read captions from JSON files, which have many captions, and from text files, which have one caption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from causvid.data.sources.caption_match import composed
from causvid.runtime import text

NAMED = 5  # largest number of names that an error message lists; the message counts the other names


def caption_pairs(file: Path) -> list[tuple[str, str]]:
    """Read a JSON file of captions: {path: caption} or [{path, cap, frame_idx}].

    A list may have several entries for a video, one for each range of frames "start:end". The caption of the earliest
    range is returned first, because clips start at the beginning of a video. If ``cap`` is a list of captions, the
    first caption of this list is used.

    Returns:
        Pairs (path, caption). If a path has several captions, the preferred caption is first. The strings may contain
        halves of surrogate pairs, because JSON can encode such halves.

    Raises:
        ValueError: The file is not UTF-8, is not JSON, or is not one of the two forms.
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
        raise ValueError(f"{file}: the path {named(odd)} is not a string")
    if wrong := [path for path, caption in pairs if not isinstance(caption, str)]:
        raise ValueError(f"{file}: the caption of {named(wrong)} is not a string")
    return [(PurePosixPath(path).as_posix(), _one_line(caption)) for path, caption in pairs]


def read_sidecar(file: Path, name: str) -> str:
    """Return the content of a text file as a caption.

    Args:
        file: The text file.
        name: Name of the file, for error messages.

    Raises:
        ValueError: The file is not UTF-8.
    """
    return _one_line(text.decode(file.read_bytes(), name))


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def named(names: Sequence[str]) -> str:
    """Format the first ``NAMED`` of ``names`` and the number of other names. Names that look alike are escaped."""
    shown = [name if name == composed(name) and text.fault(name) is None else ascii(name) for name in names[:NAMED]]
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(shown) + rest
