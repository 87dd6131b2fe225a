"""The dependencies on code that each stage needs in dvc.yaml and ablation/dvc.yaml.

    python -m tests.architecture.dependencies

rewrites them in both files. A test compares the files with ``required``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from causvid.harness.closure import import_closure, is_neutral

ROOT = Path(__file__).resolve().parents[2]
FILES = ("dvc.yaml", "ablation/dvc.yaml")
CODE = ("causvid/", "stages/")  # paths of dependencies on code start with one of these
# A stage that imports all of a folder depends on the folder. It also depends on one of these folders if it imports all
# but one of its files, so that the lists stay short: an edit of that file then reruns the stage without need.
ROUNDED_UP = (
    "causvid/data/videos",
    "causvid/evaluation",
    "causvid/methods/shared",
    "causvid/runtime",
    "causvid/sampling",
    "causvid/training",
)


def required(stage: str) -> list[str]:
    """Return the dependencies on code of the module ``stages/<stage>.py``, folders where possible, sorted."""
    found = import_closure(ROOT / "stages" / f"{stage}.py", ROOT)
    for folder, files in sorted(_folders().items()):  # an outer folder comes before those in it
        if len(files) > 1 and len(files - found) <= (1 if folder in ROUNDED_UP else 0):
            found = {name for name in found if not name.startswith(f"{folder}/")} | {folder}
    return sorted(found)


def needless(stage: str) -> set[str]:
    """Return the files whose edit reruns ``stage`` although it does not import them."""
    listed = required(stage)
    covered = {name for name in _files() if any(name == dep or name.startswith(f"{dep}/") for dep in listed)}
    return covered - import_closure(ROOT / "stages" / f"{stage}.py", ROOT)


def is_code(dependency: str) -> bool:
    """Return whether an entry of ``deps:`` is code of this repository."""
    return dependency.startswith(CODE)


def _files() -> list[str]:
    paths = [path for path in (ROOT / "causvid").rglob("*") if path.suffix in (".py", ".jinja")]
    return [path.relative_to(ROOT).as_posix() for path in paths if path.stat().st_size]


def _folders() -> dict[str, set[str]]:
    """Return the files in and below every folder of the package that has no neutral file."""
    folders: dict[str, set[str]] = defaultdict(set)
    for name in _files():
        for parent in Path(name).parents[:-2]:
            folders[parent.as_posix()].add(name)
    return {folder: names for folder, names in folders.items() if not any(map(is_neutral, names))}


def _rewrite(file: Path) -> None:
    lines, result, stage = file.read_text().splitlines(), [], None
    while lines:
        line = lines.pop(0)
        result.append(line)
        if " cmd: " in line:
            command = re.search(r"cmd: exec python -m stages\.(\w+) ", line)
            stage = command[1] if command else None
        if line.strip() == "deps:" and stage:
            entries = []
            while lines and (entry := re.match(r"( *)- (.*)", lines[0])):
                indent, dependency = entry.groups()
                entries.append(dependency)
                lines.pop(0)
            others = [entry for entry in entries if not is_code(entry)]
            result += [f"{indent}- {entry}" for entry in [*required(stage), *others]]
    file.write_text("\n".join(result) + "\n")


if __name__ == "__main__":
    for name in FILES:
        _rewrite(ROOT / name)
