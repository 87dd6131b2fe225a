"""Manage the folders of unfinished work under .work/, one folder for each stage and key.

The key of a stage is a checksum of everything that determines the result: resolved params, contents of the inputs, and
source of the modules. Therefore an interrupted stage continues its own work, and never the work of another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from causvid.harness.checksums import Checksums
from causvid.harness.closure import import_closure
from causvid.harness.project import work_root


class Origin(NamedTuple):
    """Everything that determines a stage's result: resolved params, and checksums of inputs and code, keyed by path."""

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    @property
    def key(self) -> str:
        """Checksum of the origin, 16 hexadecimal digits."""
        return _sum(self._asdict())[:16]

    def parts(self) -> dict[str, str]:
        """Return separate checksums for the params, for the code, and for every input (keyed by path)."""
        return {"params": _sum(self.params), "code": _sum(self.code), **self.inputs}


def stage_origin(
    stage: str, *, params: Mapping[str, Any], inputs: Sequence[Path], known: Mapping[str, str], root: Path
) -> Origin:
    """Collect everything that determines a stage's result.

    Args:
        stage: Name of the stage.
        params: Sections of params.yaml that the stage reads.
        inputs: Paths of the inputs, relative to ``root``.
        known: Known checksums of inputs, keyed by path. These inputs are not read again.
        root: Folder in which the stage runs.

    Returns:
        The params, and the checksums of the inputs and of the modules that define the stage.
    """
    take = Checksums(work_root(root) / "checksums.db")
    code = {name: take.of(root / name) for name in sorted(import_closure(root / "stages" / f"{stage}.py", root))}
    content = {path.as_posix(): known.get(path.as_posix()) or take.of(root / path) for path in inputs}
    return Origin(stage, params, content, code)


class BusyError(Exception):
    """Another process has locked the work folder."""


@contextmanager
def work_folder(stage: str, key: str, *, root: Path) -> Iterator[Path]:
    """Lock the work folder of the stage ``stage`` with the key ``key``, and create the folder if necessary.

    Yields:
        The work folder.

    Raises:
        BusyError: Another process has locked the work folder.
    """
    folder = work_root(root) / stage / key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"another process does the same work (it holds {folder}); wait for it or stop it") from error
    try:
        yield folder
    finally:
        lock.release()


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
