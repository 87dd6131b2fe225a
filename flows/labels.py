"""Name and tag flow runs by params.yaml, and list the stages of a dvc.yaml as the choices of a form in Prefect."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

SHOWN = 3  # number of targets in the name of a flow run


def run_name(default: str) -> Callable[[], str]:
    """Return a function that names the current flow run: profile, targets (``default`` without targets), and time."""

    def name() -> str:
        targets = flow_run.parameters.get("targets") or [default]
        more = f" and {len(targets) - SHOWN} more" if len(targets) > SHOWN else ""
        profile = _read(Path("params.yaml")).get("profile", "no profile")
        return f"{profile} · {', '.join(targets[:SHOWN])}{more} · {datetime.now():%H:%M}"

    return name


def run_tags(root: Path) -> list[str]:
    """Return the tags of a flow run: its profile and its seed."""
    params = _read(root / "params.yaml")
    return [f"{name}: {params[name]}" for name in ("profile", "seed") if name in params]


def stages_of(path: Path) -> list[str]:
    """Return the names of the stages in a dvc.yaml, with the items of stages that have several."""
    names = []
    for name, stage in _read(path).get("stages", {}).items():
        items = stage.get("foreach", [])
        names += [name, *(f"{name}@{item}" for item in items)] if isinstance(items, dict | list) else [name]
    return names


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file; an empty mapping if it cannot be read. DVC reports the error in the flow."""
    with suppress(OSError, YAMLError, UnicodeDecodeError):
        values = YAML(typ="safe").load(path)
        return values if isinstance(values, dict) else {}
    return {}
