"""Match captions to videos by their paths, if the match is unique.

Paths are compared in Unicode's composed form (NFC), because a file system or an archive may store an accented letter
composed (``é``) or decomposed (``e`` and an accent). If several paths are equal in the composed form, only an identical
path matches.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

Names = Mapping[str, Sequence[str]]
LONGEST_TAIL = 16  # components of a path that are compared; a path in an archive may have a million components


def match(videos: Names, captions: Names) -> dict[str, str]:
    """Pair a video and a caption if the caption is the only best match of the video, and the reverse.

    Args:
        videos: Maps each video to its names, the preferred name first.
        captions: Maps each caption to its names, the preferred name first.

    Returns:
        A mapping from videos to captions. Videos without a caption are omitted.
    """
    by_video, by_caption = _index(videos), _index(captions)
    best = {video: _best(names, by_caption) for video, names in videos.items()}
    return {
        video: caption
        for video, caption in best.items()
        if caption is not None and _best(captions[caption], by_video) == video
    }


def match_ends(videos: Names, captions: Iterable[str], *, bare: bool) -> dict[str, str]:
    """Pair videos with captions by their full paths, and the remaining videos by the ends of their paths.

    Paths often begin with the folders of another machine, so that only the ends of two paths are equal. Equal file
    names are enough if one of the two paths has no folder; a caption for A/v.mp4 never matches B/v.mp4.

    Args:
        videos: Maps each video to its full paths, the longest path first.
        captions: The paths of the captions.
        bare: Whether a path without a folder can match. If some videos are unknown, an unknown video may have the same
            file name.

    Returns:
        A mapping from videos to captions, without videos that have no caption. No two videos have the same caption.
    """
    captions = list(captions)
    full = {video: [name for name in names if bare or "/" in name] for video, names in videos.items()}
    exact = match(full, {path: [path] for path in captions})
    ends = match(
        {video: _tails(names[0], bare=bare) for video, names in videos.items()},
        {path: _tails(path, bare=bare) for path in captions},
    )
    used = set(exact.values())
    by_end = {video: path for video, path in ends.items() if path not in used and _agree(videos[video][0], path)}
    return by_end | exact


def _tails(path: str, *, bare: bool) -> list[str]:
    """Return the ends of ``path``, from the full path to the bare file name."""
    parts = path.split("/")[-LONGEST_TAIL:]
    return ["/".join(parts[start:]) for start in range(len(parts) if bare else len(parts) - 1)]


def _agree(one: str, other: str) -> bool:
    """Return whether the innermost folders of two paths are equal, or one of the paths has no folder."""
    folders = [composed(PurePosixPath(path).parent.name) for path in (one, other)]
    return not all(folders) or folders[0] == folders[1]


def composed(name: str) -> str:
    """Return ``name`` in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def _index(owners: Names) -> dict[str, dict[str, list[str]]]:
    """Map each composed name to its spellings, and each spelling to the owners of this name."""
    index: dict[str, dict[str, list[str]]] = {}
    for owner, names in owners.items():
        for name in names:
            index.setdefault(composed(name), {}).setdefault(name, []).append(owner)
    return index


def _best(names: Sequence[str], index: Mapping[str, Mapping[str, Sequence[str]]]) -> str | None:
    """Return the owner of the first name in ``names`` that has owners; None if there is no owner or several owners."""
    for name in names:
        if spellings := index.get(composed(name)):
            owners = spellings.get(name) or (next(iter(spellings.values())) if len(spellings) == 1 else ())
            return owners[0] if len(owners) == 1 else None
    return None
