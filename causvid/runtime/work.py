"""Unfinished work and its publication: keyed folders under .work/, finished things put in place by rename.

A stage's key is a hash of everything that decides its result (resolved params, content of its inputs, the source of the
modules it runs), so a killed stage finds its own half-done work again and never somebody else's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from causvid.runtime.checksums import Checksums
from causvid.runtime.closure import import_closure
from causvid.runtime.project import work_root


class Origin(NamedTuple):
    """Everything that decides a stage's result: its resolved params, and digests of its inputs and code, by path."""

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    @property
    def key(self) -> str:
        """16 hex digits that stand for all of it."""
        return _sum(self._asdict())[:16]

    def parts(self) -> dict[str, str]:
        """A sum for each thing a person can tell apart: the params, the code, every input by its path."""
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
    """Another process does the same work."""


@contextmanager
def work_folder(stage: str, key: str, *, root: Path) -> Iterator[Path]:
    """The folder of one stage and key, held by a lock while in use. BusyError when another process holds it."""
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


def publish(finished: Path, target: Path) -> None:
    """Put the file or folder ``finished`` at ``target`` in one rename, its bytes on disk first.

    Across file systems it is copied beside the target before the rename. An existing target is replaced; of a link
    only the link is, and what it leads to stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.publishing")
    _remove(beside)
    try:
        finished.rename(beside)
    except OSError:  # another file system
        _copy(finished, beside)
        _remove(finished)
    _fsync(beside)
    if target.is_dir() or beside.is_dir():
        _remove(target)  # a folder cannot be renamed over a file, over a link, or over a folder that has files
    os.replace(beside, target)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either its old content or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically. NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _fsync(path: Path) -> None:
    for file in [*path.rglob("*"), path] if path.is_dir() else [path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
