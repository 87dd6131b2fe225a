"""Folders of unfinished work under .work/, one for each stage and key.

A stage's key is a checksum of everything that decides its result (resolved params, content of its inputs, source of its
modules). An interrupted stage therefore finds its own unfinished work again, and never that of another run.
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
    """Everything that decides a stage's result: its resolved params, and checksums of its inputs and code, by path."""

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    @property
    def key(self) -> str:
        """A checksum of the origin, 16 hexadecimal digits."""
        return _sum(self._asdict())[:16]

    def parts(self) -> dict[str, str]:
        """Return a checksum for the params, for the code, and for every input by its path."""
        return {"params": _sum(self.params), "code": _sum(self.code), **self.inputs}


def stage_origin(
    stage: str, *, params: Mapping[str, Any], inputs: Sequence[Path], known: Mapping[str, str], root: Path
) -> Origin:
    """Collect everything that decides a stage's result.

    Args:
        stage: The stage's name.
        params: The sections of params.yaml that it reads.
        inputs: Its inputs, relative to ``root``.
        known: Checksums of inputs by path, for those that need not be read again.
        root: The folder in which the stage runs.

    Returns:
        Params, and the checksums of the inputs and of the modules that define the stage.
    """
    take = Checksums(work_root(root) / "checksums.db")
    code = {name: take.of(root / name) for name in sorted(import_closure(root / "stages" / f"{stage}.py", root))}
    content = {path.as_posix(): known.get(path.as_posix()) or take.of(root / path) for path in inputs}
    return Origin(stage, params, content, code)


class BusyError(Exception):
    """Another process holds the work folder."""


@contextmanager
def work_folder(stage: str, key: str, *, root: Path) -> Iterator[Path]:
    """Lock the work folder of a stage and key.

    Yields:
        The folder.

    Raises:
        BusyError: Another process holds it.
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
