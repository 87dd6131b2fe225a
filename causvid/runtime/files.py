"""Write files and folders atomically: one rename gives the complete content its final name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def publish(finished: Path, target: Path) -> None:
    """Move the file or folder ``finished`` to ``target`` by one rename, after its bytes are on disk.

    If both paths are on different file systems, ``finished`` is first copied next to ``target``. An existing target is
    replaced. An existing folder is removed just before the rename. If ``target`` is a link, the link is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.publishing")
    _remove(beside)
    try:
        finished.rename(beside)
    except OSError:  # the target is on another file system
        _copy(finished, beside)
        _remove(finished)
    _fsync(beside)
    if target.is_dir() or beside.is_dir():
        _remove(target)  # a rename cannot replace a file, a link or a non-empty folder by a folder
    os.replace(beside, target)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8 atomically: ``path`` always contains the complete old or the complete new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON with sorted keys. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


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
