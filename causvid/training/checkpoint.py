"""Training state on disk: whole or absent, verified before it is used, the newest good one wins.

A checkpoint is a folder ``step-<7 digits>`` with ``state.pt`` and ``manifest.json``, {"files": {name: {"bytes",
"sha256"}}}. Weights are whole in it however many ranks kept them in parts, so any number of workers can go on from it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from causvid.runtime.distributed import barrier, from_main, is_main, part_of, whole
from causvid.runtime.work import publish, write_json

STATE, MANIFEST = "state.pt", "manifest.json"
KEEP = 2  # the newest might be damaged by what killed the run


class Stateful(Protocol):
    """A module, an optimizer, an average: what can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """What to save."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore it."""
        ...


def save(folder: Path, step: int, parts: Mapping[str, Stateful], history: list[dict[str, float]]) -> None:
    """Write ``parts`` and ``history`` as the state after ``step`` steps, then drop all but the newest ``KEEP``."""
    values = {name: whole(part.state_dict()) for name, part in parts.items()}
    if is_main():
        building = folder / ".building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        torch.save({"step": step, "history": history, "parts": values}, building / STATE)
        write_json(building / MANIFEST, {"files": {STATE: _entry(building / STATE)}})
        publish(building, folder / f"step-{step:07d}")
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old)
    barrier()


def resume(folder: Path, parts: Mapping[str, Stateful]) -> tuple[int, list[dict[str, float]]]:
    """Restore ``parts`` from the newest checkpoint that verifies; returns its step and history, or (0, []).

    Those that do not are named on stderr, each with the reason.
    """
    found = from_main(_newest(folder) if is_main() else None)
    if found is None:
        return 0, []
    # mmap: what ranks of one machine read is in its memory once. weights_only: nothing in the file is run as code.
    state = torch.load(folder / found / STATE, map_location="cpu", weights_only=True, mmap=True)
    for name, part in parts.items():
        values = state["parts"][name]
        if isinstance(part, nn.Module):
            held = part.state_dict()
            values = {key: part_of(value, held[key]) if key in held else value for key, value in values.items()}
        part.load_state_dict(values)
    return state["step"], state["history"]


def _newest(folder: Path) -> str | None:
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        fault = _fault(candidate)
        if not fault:
            return candidate.name
        print(f"{candidate} is damaged ({fault}); trying the checkpoint before it", file=sys.stderr)
    return None


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint; nothing when it is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except OSError:
        return f"no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    if STATE not in listed:
        return f"{MANIFEST} does not list {STATE}"
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            return f"no {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if _entry(path)["sha256"] != digest:
            return f"{name} has another sum"
    return ""


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
