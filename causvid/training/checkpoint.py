"""Training state on disk: whole or absent, verified before it is used, the newest good one wins."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from causvid.runtime.distributed import barrier, is_main
from causvid.runtime.work import publish

STATE, DIGEST = "state.pt", "state.sha256"
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
    if is_main():
        building = folder / ".building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        state = {"step": step, "history": history, "parts": {name: part.state_dict() for name, part in parts.items()}}
        torch.save(state, building / STATE)
        (building / DIGEST).write_text(_sha256(building / STATE))
        publish(building, folder / f"step-{step:07d}")
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old)
    barrier()


def resume(folder: Path, parts: Mapping[str, Stateful]) -> tuple[int, list[dict[str, float]]]:
    """Restore ``parts`` from the newest checkpoint that verifies; returns its step and history, or (0, [])."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        if not _is_whole(candidate):
            print(f"{candidate} is damaged; trying the checkpoint before it", file=sys.stderr)
            continue
        # weights_only: nothing in the file is run as code
        state = torch.load(candidate / STATE, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        return state["step"], state["history"]
    return 0, []


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / DIGEST).read_text() == _sha256(folder / STATE)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
