"""Save and restore checkpoints of a training. A training resumes from the newest checkpoint with correct checksums.

A checkpoint is a folder ``step-<7 digits>`` with ``state.pt`` and ``manifest.json``, {"files": {name: {"bytes",
"sha256"}}}. Sharded weights are gathered first, so that any number of workers can resume from a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from causvid.runtime.files import publish, write_json
from causvid.training.distributed import barrier, from_main, is_main, load_weights, whole, whole_weights

STATE, MANIFEST = "state.pt", "manifest.json"
KEEP = 2  # number of newest checkpoints to keep, because a crash may damage the last checkpoint


class Stateful(Protocol):
    """An object whose state can be saved and restored: a module, an optimizer or a weight average."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the object."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore the state of the object."""
        ...


class Writer:
    """Writes checkpoints, and deletes old checkpoints.

    Args:
        folder: Folder of the checkpoints.
        made_from: Checksums of everything that determines the result (params, prompts, teacher, ...), keyed by name.
        keep_every: Checkpoints after a multiple of this number of steps are never deleted. None = all are deleted
            except the newest ``KEEP``.
        in_background: Whether training continues while a copy of the state is written. The next ``save`` or ``wait``
            then raises an error of the writing thread.
    """

    def __init__(
        self, folder: Path, made_from: Mapping[str, str], *, keep_every: int | None, in_background: bool
    ) -> None:
        self.folder, self.made_from, self.keep_every = folder, dict(made_from), keep_every
        self.thread = ThreadPoolExecutor(1) if in_background else None
        self.writing: Future[None] | None = None

    def save(self, step: int, parts: Mapping[str, Stateful], history: Sequence[Mapping[str, float]]) -> None:
        """Write ``parts`` and ``history`` as the state after ``step`` steps. All ranks must call this method."""
        self.wait()
        state = {
            "step": step,
            "history": [dict(row) for row in history],
            "made_from": self.made_from,
            "parts": {name: _state_of(part) for name, part in parts.items()},
        }
        if self.thread is None:
            if is_main():
                self._write(state)
            barrier()
        elif is_main():
            self.writing = self.thread.submit(self._write, tree_map_only(torch.Tensor, _copied, state))

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None

    def _write(self, state: dict[str, Any]) -> None:
        building = self.folder / ".building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        torch.save(state, building / STATE)
        write_json(building / MANIFEST, {"files": {STATE: _entry(building / STATE)}})
        publish(building, self.folder / f"step-{state['step']:07d}")
        for old in sorted(self.folder.glob("step-*"))[:-KEEP]:
            if self.keep_every is None or int(old.name.removeprefix("step-")) % self.keep_every:
                shutil.rmtree(old)


def resume(
    folder: Path, parts: Mapping[str, Stateful], made_from: Mapping[str, str]
) -> tuple[int, list[dict[str, float]]]:
    """Restore ``parts`` from the newest valid checkpoint. Damaged checkpoints are reported on stderr.

    Args:
        folder: Folder of the checkpoints.
        parts: Objects to restore, keyed by the names in the checkpoint.
        made_from: Checksums of everything that determines the result, keyed by name.

    Returns:
        The number of finished steps, and the logged rows; (0, []) if there is no checkpoint.

    Raises:
        ValueError: The checksums in the checkpoint differ from ``made_from``.
    """
    newest = from_main(_newest(folder) if is_main() else None)
    if newest is None:
        return 0, []
    # mmap: the ranks of one machine share the memory. weights_only: no code in the file is executed.
    state = torch.load(folder / newest / STATE, map_location="cpu", weights_only=True, mmap=True)
    then = state["made_from"]
    other = sorted(name for name in then.keys() | made_from.keys() if then.get(name) != made_from.get(name))
    if other:
        raise ValueError(
            f"{folder / newest} was made from other {', '.join(other)} than this run; restore them, or move {folder} "
            "away to start the training again"
        )
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            load_weights(part, state["parts"][name])
        else:
            part.load_state_dict(state["parts"][name])
    return state["step"], state["history"]


def kept(folder: Path) -> str:
    """Return a clause about the newest checkpoint in ``folder``."""
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return "there is no checkpoint yet"
    return f"the checkpoint of step {int(newest.name.removeprefix('step-'))} is kept"


def _state_of(part: Stateful) -> dict[str, Any]:
    """Return the state of ``part`` without frozen weights, which can be loaded from the initial model."""
    state: dict[str, Any]
    state = whole_weights(part, frozen=False) if isinstance(part, nn.Module) else whole(part.state_dict())
    return state


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU, so that training can change the original."""
    return tensor.detach().to("cpu", copy=True)


def _newest(folder: Path) -> str | None:
    """Return the name of the newest valid checkpoint; None if no checkpoint is valid."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        fault = _fault(candidate)
        if not fault:
            return candidate.name
        print(f"{candidate} is damaged ({fault}); trying the checkpoint before it", file=sys.stderr)
    return None


def _fault(folder: Path) -> str:
    """Return the reason why a checkpoint is damaged; an empty string if it is valid."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not a valid manifest"
    if STATE not in listed:
        return f"{MANIFEST} does not list {STATE}"
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            return f"no {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _entry(path)["sha256"] != digest:
            return f"{name} has another checksum"
    return ""


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
