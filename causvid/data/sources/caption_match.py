"""Match captions to videos by their paths, if the match is unique.

Paths are compared in Unicode's composed form (NFC), because file systems and archives store the same name composed
(``é``) or decomposed (``e`` and an accent). If several paths are equal in that form, only an identical path matches.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

Names = Mapping[str, Sequence[str]]
LONGEST_TAIL = 16  # components of a path; a path in an archive may have a million


def match(videos: Names, captions: Names) -> dict[str, str]:
    """Pair a video and a caption if each is the only best match of the other.

    Args:
        videos: The names of each video, the preferred name first.
        captions: The names of each caption, the preferred name first.

    Returns:
        The caption of each video that has one.
    """
    by_video, by_caption = _index(videos), _index(captions)
    best = {video: _best(names, by_caption) for video, names in videos.items()}
    return {
        video: caption
        for video, caption in best.items()
        if caption is not None and _best(captions[caption], by_video) == video
    }


def match_ends(videos: Names, captions: Iterable[str], *, bare: bool) -> dict[str, str]:
    """Pair videos with captions by their full paths, and the remaining ones by the ends of their paths.

    Paths often begin with the folders of another machine, so that only their ends are equal. A bare file name is enough
    if one of the two paths has no folder; a caption for A/v.mp4 never matches B/v.mp4.

    Args:
        videos: The full paths of each video, the longest first.
        captions: The paths of the captions.
        bare: Whether a bare file name can match. If some videos are unknown, one of them may have the same name.

    Returns:
        The caption of each video that has one. No two videos have the same caption.
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
    """Return a mapping from composed name and spelling to the owners of that name."""
    index: dict[str, dict[str, list[str]]] = {}
    for owner, names in owners.items():
        for name in names:
            index.setdefault(composed(name), {}).setdefault(name, []).append(owner)
    return index


def _best(names: Sequence[str], index: Mapping[str, Mapping[str, Sequence[str]]]) -> str | None:
    """Return the owner of the first of ``names`` that has owners; None if there are several owners, or none."""
    for name in names:
        if spellings := index.get(composed(name)):
            owners = spellings.get(name) or (next(iter(spellings.values())) if len(spellings) == 1 else ())
            return owners[0] if len(owners) == 1 else None
    return None
