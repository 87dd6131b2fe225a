"""Read dvc.lock, DVC's file about finished stages: checksums of outs, and the stages that wrote an input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

Lock = Mapping[str, Mapping[str, Any]]  # maps the name of a stage to its deps and outs


def read_lock(root: Path) -> Lock:
    """Return the stages in ``root``/dvc.lock; an empty mapping if the file does not exist."""
    path = root / "dvc.lock"
    return (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}


def digests(lock: Lock) -> dict[str, str]:
    """Return DVC's checksums of the outs of all stages, keyed by path."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", []) if "md5" in out}


def upstream(lock: Lock, inputs: Iterable[Path], root: Path) -> dict[str, str]:
    """Map the names of the stages that wrote ``inputs``, directly or indirectly, to the keys of these stages.

    The metrics file of a stage contains its key. A stage without a key is omitted, but the stages before it are not.
    """
    found: dict[str, str | None] = {}
    todo = [PurePosixPath(path) for path in inputs]
    while todo:
        path = todo.pop()
        for name, stage in lock.items():
            outs = [PurePosixPath(out["path"]) for out in stage.get("outs", [])]
            if name not in found and any(path.is_relative_to(out) or out.is_relative_to(path) for out in outs):
                found[name] = _key(stage, root)
                todo += [PurePosixPath(dep["path"]) for dep in stage.get("deps", [])]
    return {name: key for name, key in found.items() if key}


def unchanged(lock: Lock, root: Path) -> dict[str, str]:
    """Map the names of the stages whose results belong together to the keys of these stages.

    The result of a stage is out of date if an input has another checksum in another stage of ``lock``, or if a stage
    that wrote an input is out of date.
    """
    outs, stale = digests(lock), set()
    writers = {out["path"]: name for name, stage in lock.items() for out in stage.get("outs", [])}
    reads = {name: {dep["path"]: dep.get("md5") for dep in stage.get("deps", [])} for name, stage in lock.items()}
    todo = {name for name, deps in reads.items() if any(outs.get(path, md5) != md5 for path, md5 in deps.items())}
    while todo:
        stale |= todo
        todo = {name for name, deps in reads.items() if any(writers.get(path) in stale for path in deps)} - stale
    keys = {name: _key(stage, root) for name, stage in lock.items() if name not in stale}
    return {name: key for name, key in keys.items() if key}


def _key(stage: Mapping[str, Any], root: Path) -> str | None:
    """Return the key in the metrics file of a stage in dvc.lock; None if the stage has no such file."""
    outs = (root / out["path"] for out in stage.get("outs", []))
    return next(_keys(out for out in outs if out.suffix == ".json"), None)


def _keys(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        if file.is_file() and "key" in (values := json.loads(file.read_text(encoding="utf-8"))):
            yield values["key"]
