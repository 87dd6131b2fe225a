"""DVC's record of finished stages in dvc.lock: the checksums of their outs, and the stages that made an input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

Lock = Mapping[str, Mapping[str, Any]]  # a stage's deps and outs, by its name


def read_lock(root: Path) -> Lock:
    """Return the stages in ``root``/dvc.lock; none if there is no such file."""
    path = root / "dvc.lock"
    return (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}


def digests(lock: Lock) -> dict[str, str]:
    """Return DVC's checksums of the outs of all stages, by path."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", []) if "md5" in out}


def upstream(lock: Lock, inputs: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the keys of the stages that made ``inputs``, directly or indirectly, by the names of the stages.

    A stage's key stands in its metrics file; a stage without one is passed over, those before it are not.
    """
    found: dict[str, str | None] = {}
    todo = [PurePosixPath(path) for path in inputs]
    while todo:
        path = todo.pop()
        for name, stage in lock.items():
            outs = [PurePosixPath(out["path"]) for out in stage.get("outs", [])]
            if name not in found and any(path.is_relative_to(out) or out.is_relative_to(path) for out in outs):
                found[name] = next(_keys(root / out for out in outs if out.suffix == ".json"), None)
                todo += [PurePosixPath(dep["path"]) for dep in stage.get("deps", [])]
    return {name: key for name, key in found.items() if key}


def _keys(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        if file.is_file() and "key" in (values := json.loads(file.read_text(encoding="utf-8"))):
            yield values["key"]
