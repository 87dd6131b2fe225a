"""Compute the required content of dvc.yaml and ablation/dvc.yaml from the declarations of the stages.

Run ``python -m tests.architecture.dependencies`` to write description, dependencies and params of every stage to
dvc.yaml. The command writes everything but descriptions to ablation/dvc.yaml, because these descriptions name a row. A
test compares the files with ``required``.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from causvid.harness import inputs
from causvid.harness.closure import import_closure, is_neutral
from causvid.harness.declaration import Curve, Headlines, Metrics, Option, Reads, Section, Stage, Writes, declared
from causvid.params import PathRule
from causvid.profile import PATHS

ROOT = Path(__file__).resolve().parents[2]
FILES = ("dvc.yaml", "ablation/dvc.yaml")
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
# A stage that imports all files of a folder depends on the folder. For each folder below, a stage may import all files
# except the given number of files. An edit of a file that is not imported then reruns the stage without need, but the
# lists stay short.
ROUNDED_UP = {
    "causvid/data/videos": 1,
    "causvid/evaluation": 1,
    "causvid/methods/ode_init": 1,
    "causvid/methods/shared": 1,
    "causvid/methods/teacher": 1,
    "causvid/methods/vae": 1,
    "causvid/runtime": 1,
    "causvid/sampling": 1,
    "causvid/training": 1,
    "causvid/wan": 2,
}


class Stanza(NamedTuple):
    """The parts of a stage in dvc.yaml that follow from its declaration, in the terms of dvc.yaml.

    Attributes:
        desc: Description, the first line of the docstring; empty for ``checksums``.
        options: Names of the options in ``cmd``, without ``params``.
        deps: Dependencies.
        params: Entries of params files that are params, by file; ``params.yaml`` is DVC's own.
        outs: Outputs.
        metrics: Files of headline numbers.
        plots: Maps files to vertical axes: the file of all metrics, which has no axis, and the curve.
    """

    desc: str
    options: list[str]
    deps: list[str]
    params: dict[str, list[str]]
    outs: list[str]
    metrics: list[str]
    plots: dict[str, str | None]


def stage_class(stage: str) -> type[Stage] | None:
    """Return the declaration in ``stages/<stage>.py``; None for ``checksums``, which has no such declaration."""
    module = importlib.import_module(f"stages.{stage}")
    return next((it for it in vars(module).values() if isinstance(it, type) and it.__module__ == module.__name__), None)


def options_of(command: str) -> dict[str, str]:
    """Return a map of Python name to value for the options of a command line."""
    return {name.replace("-", "_"): value for name, value in re.findall(r" --([a-z-]+) (\S+)", command)}


def required(stage: str, command: str, changed: Mapping[str, str] | None = None) -> Stanza:
    """Return the content that follows from a command.

    Args:
        stage: Name of the module in ``stages/``.
        command: ``cmd`` of the stage.
        changed: Paths of params.yaml that have another value in this stage.
    """
    cls, given = stage_class(stage), options_of(command)
    if cls is None:
        return Stanza("", ["out"], code(stage), {}, [given["out"]], [], {})
    file, item = given.get("params", "params.yaml"), given.get("item")
    reads = declared(cls, Reads)
    read = [f"{given[it.name]}/{entry}".rstrip("/") for it in reads for entry in it.role.entries or [""]]
    return Stanza(
        desc=(cls.__doc__ or "").splitlines()[0].rstrip("."),
        options=[it.name for it in declared(cls, Option)],
        deps=[*dict.fromkeys([*code(stage), *read, *_user_paths(cls.user_paths(item), changed or {})])],
        params={file: [it.role.name for it in declared(cls, Section)]},
        outs=[given[it.name] for it in declared(cls, Writes)],
        metrics=[given[it.name] for it in declared(cls, Headlines)],
        plots={given[it.name]: None for it in declared(cls, Metrics) if it.role.in_dvc}
        | {given[it.name]: it.role.y for it in declared(cls, Curve)},
    )


def _user_paths(paths: Mapping[str, PathRule], changed: Mapping[str, str]) -> Iterator[str]:
    """Yield the dependencies for paths in params.yaml: all paths that must exist, and the checksums of all paths."""
    known = [entry for entry, rule in paths.items() if rule.counted_by is None]
    for entry in known:
        if not paths[entry].may_be_missing:
            # DVC does not resolve nested expressions, so the foreach of the stage provides the value.
            yield changed.get(entry) or ("${item}" if "${" in entry else f"${{{entry}}}")
    yield from (f"data/checksums/{entry}" for entry in known if not inputs.is_output(changed.get(entry, "")))
    yield from (rule.counted_by.as_posix() for rule in paths.values() if rule.counted_by)


def code(stage: str) -> list[str]:
    """Return the code that the module ``stages/<stage>.py`` depends on.

    Folders replace files where possible, and the list is sorted.
    """
    found = import_closure(ROOT / "stages" / f"{stage}.py", ROOT)
    for folder, files in sorted(_folders().items()):  # an outer folder comes before its inner folders
        if len(files) > 1 and len(files - found) <= ROUNDED_UP.get(folder, 0):
            found = {name for name in found if not name.startswith(f"{folder}/")} | {folder}
    return sorted(found)


def needless(stage: str) -> set[str]:
    """Return the files whose edit reruns ``stage``, although ``stage`` does not import these files."""
    listed = code(stage)
    covered = {name for name in _files() if any(name == dep or name.startswith(f"{dep}/") for dep in listed)}
    return covered - import_closure(ROOT / "stages" / f"{stage}.py", ROOT)


def changed_paths(stanza: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths that the ablation sets to one value in all rows of a stage of ablation/dvc.yaml.

    Args:
        stanza: The stage.
        settings: Content of ablation/params.yaml.
    """
    if "matrix" not in stanza:
        return {}
    rows = [settings["all"] | settings["rows"][row] for row in stanza["matrix"].get("row", [])] or [settings["all"]]
    found: dict[str, str] = {}
    for entry in PATHS:
        section, _, key = entry.rpartition(".")
        values = {str(row[section][key]) if section in row else None for row in rows}
        if len(values) == 1 and (value := values.pop()) is not None:
            found[entry] = value
    return found


def stanzas() -> Iterator[tuple[str, str, str, dict[str, Any], Stanza]]:
    """Yield file, name, stage, content and required content of every stage in both files that runs a stage module."""
    settings = YAML(typ="safe").load(ROOT / "ablation" / "params.yaml")
    for file in FILES:
        for name, entry in YAML(typ="safe").load(ROOT / file)["stages"].items():
            stanza = {**entry, **entry.get("do", {})}
            if found := re.match(r"(?:cd \.\. && )?exec python -m stages\.(\w+) ", stanza["cmd"]):
                need = required(found[1], stanza["cmd"], changed_paths(stanza, settings))
                yield file, name, found[1], stanza, need if file == FILES[0] else in_ablation(need)


def in_ablation(need: Stanza) -> Stanza:
    """Return ``need`` with paths relative to ``ablation/``, the folder of the second DVC project."""
    return Stanza(
        desc=need.desc,
        options=need.options,
        deps=[_from_ablation(path) for path in need.deps],
        params={_from_ablation(path): keys for path, keys in need.params.items()},
        outs=[_from_ablation(path) for path in need.outs],
        metrics=[_from_ablation(path) for path in need.metrics],
        plots={_from_ablation(path): axis for path, axis in need.plots.items()},
    )


def _from_ablation(path: str) -> str:
    """Convert a path in the root to a path in ``ablation/``, which contains links to the folders of the code."""
    if path.startswith("ablation/"):
        return path.removeprefix("ablation/")
    return path if path.startswith(("causvid/", "stages/")) else f"../{path}"


def _files() -> list[str]:
    paths = [path for path in (ROOT / "causvid").rglob("*") if path.suffix in (".py", ".jinja")]
    return [path.relative_to(ROOT).as_posix() for path in paths if path.stat().st_size]


def _folders() -> dict[str, set[str]]:
    """Return, for every folder of the package without a neutral file, all files in the folder and below."""
    folders: dict[str, set[str]] = defaultdict(set)
    for name in _files():
        for parent in Path(name).parents[:-2]:
            folders[parent.as_posix()].add(name)
    return {folder: names for folder, names in folders.items() if not any(map(is_neutral, names))}


def _rewrite(file: str) -> None:
    """Rewrite the blocks ``deps:`` and the lines ``params:`` of one file. Comments outside these lines are kept."""
    needs = [need for where, *_, need in stanzas() if where == file]
    lines, result, need = (ROOT / file).read_text().splitlines(), list[str](), None
    while lines:
        line = lines.pop(0)
        if " cmd: " in line:
            need = needs.pop(0) if "-m stages." in line else None
            if need and need.desc and file == FILES[0]:
                result[-1] = f"{line[: line.index('cmd: ')]}desc: {_quoted(need.desc)}"
        indent = line[: len(line) - len(line.lstrip())]
        if need and line.strip() == "deps:":
            while re.match(r" *- ", lines[0]):
                lines.pop(0)
            line = "\n".join([line, *(f"{indent}  - {_quoted(dep)}" for dep in need.deps)])
        elif need and line.strip().startswith("params: ["):
            entries = [
                ", ".join(keys) if path == "params.yaml" else f"{_quoted(path)}: [{', '.join(keys)}]"
                for path, keys in need.params.items()
            ]
            line = f"{indent}params: [{', '.join(entries)}]"
        result.append(line)
    (ROOT / file).write_text("\n".join(result) + "\n")


def _quoted(text: str) -> str:
    """Quote a string that would have another meaning in YAML."""
    return f"'{text}'" if "${" in text or ": " in text else text


if __name__ == "__main__":
    for name in FILES:
        _rewrite(name)
