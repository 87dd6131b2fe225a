"""Compute checksums of the contents of files and folders, and store them until a file changes.

A file is unchanged if its device, inode, size, modification time and change time are unchanged. No program can set the
change time. Therefore a file is read again even if its replacement has the same size and modification time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

ABSENT = "absent"  # checksum of a path that does not exist
REMEMBERED_FROM = 2**20  # minimum bytes of a file whose checksum is stored; smaller files are read quickly
SETTLED = 2.0  # minimum age of a file in seconds: after this time, every change also changes the times


class Checksums:
    """Computes checksums, and stores the checksums of large files in an sqlite file. Processes can share this file."""

    def __init__(self, memory: Path) -> None:
        """Use the file ``memory``.

        Args:
            memory: The sqlite file, which is created when the first checksum is stored. If the sqlite file cannot be
                used, every file is read.
        """
        self.memory = memory

    def of(self, path: Path) -> str:
        """Compute the checksum of the file or folder at ``path``. Links are followed.

        The checksum of a folder covers the names and contents of all files below the folder. For a broken link, and for
        a link to a folder that was read before or that contains the link, only the text of the link is included.

        Args:
            path: A file, a folder, or a link to a file or folder.

        Returns:
            64 hexadecimal digits (SHA-256), or ``"absent"`` if the path or the target of the link does not exist.

        Raises:
            ValueError: A file or folder cannot be read.
        """
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        if not stat.S_ISDIR(found.st_mode):
            return self._of_file(path, found).hex()
        digest = hashlib.sha256(b"folder")
        seen = {(it.st_dev, it.st_ino) for it in map(Path.stat, path.resolve().parents)}
        for name, content in self._below(path, b"", seen):
            digest.update(name + b"\0" + content)
        return digest.hexdigest()

    def _below(self, folder: Path, prefix: bytes, seen: set[tuple[int, int]]) -> Iterator[tuple[bytes, bytes]]:
        """Yield the name and digest of every file below ``folder``, sorted by name.

        ``seen`` contains the device and inode of folders that are not entered again: those that contain ``folder``, and
        those that were read before.
        """
        here = folder.stat()
        seen.add((here.st_dev, here.st_ino))
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise ValueError(f"{folder} cannot be read ({error})") from error
        for path in entries:
            shown = prefix + os.fsencode(path.name)
            try:
                found = path.stat()
            except OSError:  # a broken or circular link
                found = path.lstat()
            if stat.S_ISLNK(found.st_mode) or (found.st_dev, found.st_ino) in seen:
                yield shown, os.fsencode(path.readlink()) if path.is_symlink() else b"folder"
            elif stat.S_ISDIR(found.st_mode):
                yield from self._below(path, shown + b"/", seen)
            else:
                yield shown, self._of_file(path, found)

    def _of_file(self, path: Path, found: os.stat_result) -> bytes:
        """Return the digest of a file. For a pipe, a socket or a device, only the kind is included."""
        if not stat.S_ISREG(found.st_mode):
            return hashlib.sha256(f"kind {stat.S_IFMT(found.st_mode):o}".encode()).digest()
        if found.st_size < REMEMBERED_FROM:
            return _digest(path)
        same = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        if known := self._recall(same):
            return known
        digest = _digest(path)
        if time.time() - found.st_ctime > SETTLED:
            self._remember(same, digest)
        return digest

    def _recall(self, same: str) -> bytes | None:
        if self.memory.is_file():
            with suppress(sqlite3.Error), closing(sqlite3.connect(self.memory)) as database:
                for (digest,) in database.execute("select digest from checksums where file = ?", (same,)):
                    return bytes(digest)
        return None

    def _remember(self, same: str, digest: bytes) -> None:
        with suppress(OSError, sqlite3.Error):
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.memory)) as database, database:
                database.execute("create table if not exists checksums (file text primary key, digest blob)")
                database.execute("insert or replace into checksums values (?, ?)", (same, digest))


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
