"""What DVC has recorded of finished stages: dvc.lock, read for digests of their outs and for who made an input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

Lock = Mapping[str, Mapping[str, Any]]  # a stage's deps and outs, by its name


def read_lock(root: Path) -> Lock:
    """The stages of ``root``/dvc.lock; none where there is no such file."""
    path = root / "dvc.lock"
    return (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}


def digests(lock: Lock) -> dict[str, str]:
    """DVC's digests of the stages' outs, by path."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", []) if "md5" in out}


def upstream(lock: Lock, inputs: Iterable[Path], root: Path) -> dict[str, str]:
    """Keys of the stages that made ``inputs``, directly or through others, by the stages' names.

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
