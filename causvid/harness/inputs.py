"""Locate the paths in params.yaml, check whether they can be used, and compute their checksums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any

from causvid.harness.checksums import Checksums
from causvid.harness.project import project_root, work_root
from causvid.params import PathRule
from causvid.runtime import text

OURS, THEIRS = PurePosixPath("data"), PurePosixPath("data/inputs")
BY_DVC = "an output of this pipeline"


def value_of(values: Mapping[str, Any], name: str) -> str:
    """Return the unchanged text of the path in the entry ``name`` of the params file ``values``."""
    found: Any = values
    for key in name.split("."):
        found = found[key]
    return str(found)


def path_problems(values: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence, with the remedy, for each invalid path in a params file.

    Args:
        values: Content of the whole params file.
        names: Dotted names of the paths.
    """
    for name in names:
        value = value_of(values, name)
        if reason := _fault(value):
            yield f"{name} is {value!r}, {reason}"


def _fault(value: str) -> str:
    """Return the reason why DVC or a stage cannot use the path ``value``; empty if it can be used."""
    root = Path.cwd()
    absolute = Path(root, value)
    if not value or "\0" in value:
        return "which is not a path; name a file or a folder"
    if reason := text.fault(value):
        return f"which {reason}; rename the file or the folder"
    if "://" in value:
        return "a URL; download the file and name the local copy"
    if value.startswith("~"):
        return "in which '~' is not replaced by the home folder; write the path in full"
    if root.is_relative_to(absolute) or _lexical(absolute) in (root, *root.parents):
        return "a folder that holds the project itself; name a folder beside or below the project"
    if ".dvc" in absolute.parts[len(root.parts) :] or absolute.suffix == ".dvc":
        return "which belongs to DVC itself; name another place"
    if absolute.name in ("dvc.yaml", "dvc.lock"):
        return "a file of DVC's own, which cannot be a dependency; name another file"
    return ""


def _lexical(path: Path) -> Path:
    """Return ``path`` without ``..``. Links are not followed."""
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." and len(parts) > 1 else [*parts, part]
    return Path(*parts)


def located(values: Mapping[str, Any], paths: Mapping[str, PathRule], root: Path) -> dict[str, Any]:
    """Replace paths of a params file that a stage must read from the folder of the project.

    The temporary folder of a DVC experiment contains only files that git tracks. Git usually does not track the videos,
    captions, environments or weights of the user. The entries for these files have ``may_be_missing`` in their rules,
    and are read from the folder of the project.

    Args:
        values: The whole params file.
        paths: Dotted names and rules of the paths.
        root: The folder in which the stage runs.

    Returns:
        A copy of ``values``; outside of an experiment, an equal copy.
    """
    copy, project = deepcopy(dict(values)), project_root(root)
    if project == root:
        return copy
    for name in (name for name, rule in paths.items() if rule.may_be_missing):
        *parents, last = name.split(".")
        place = copy
        for key in parents:
            place = place[key]
        place[last] = str(project / place[last])
    return copy


def checksums(values: Mapping[str, Any], paths: Mapping[str, PathRule], root: Path) -> dict[str, str]:
    """Compute the checksums of paths in a params file.

    Args:
        values: The whole params file.
        paths: Dotted names and rules of the paths.
        root: The folder in which the stage runs.

    Returns:
        Checksums or ``"absent"``, keyed by the path in its shortest spelling (no ``./``, no slash at the end).

    Raises:
        ValueError: A path does not exist although it must, or a path cannot be read.
    """
    take, where, found = Checksums(work_root(root) / "checksums.db"), located(values, paths, root), dict[str, str]()
    for name, rule in paths.items():
        path = root / (rule.counted_by or value_of(where, name))
        if not rule.may_be_missing and not path.exists():
            raise ValueError(
                f"{name} is {value_of(values, name)}, which does not exist; name another path or create it"
            )
        found[Path(value_of(values, name)).as_posix()] = take.of(path)
    return found


def is_output(value: str) -> bool:
    """Return whether a path in params.yaml is an output of this pipeline, which DVC tracks itself."""
    path = PurePosixPath(value)
    return path.is_relative_to(OURS) and not path.is_relative_to(THEIRS)
