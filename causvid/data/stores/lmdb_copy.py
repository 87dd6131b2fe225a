"""Write compacting copies of an LMDB. The bytes of the copy do not depend on the size of the memory map.

LMDB records the size of the map in a field of its two meta pages. LMDB's compacting copy also reuses a write buffer
without clearing it, so that the content of this field appears again in the unused middle of some later pages. This
module writes a constant to all these places. Readers ignore the field; they map as many bytes as the file has.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import lmdb

RECORDED_MAP = 2**40  # the constant that is written as the map size, in bytes; no process maps so many bytes
# Offset of the map size in a meta page, in bytes. A header of 16 bytes, a magic number of 4 bytes, a version of 4 bytes
# and an address of 8 bytes are before the map size.
MAP_SIZE_AT = 32
FIELD = 8  # size of the field of the map size in bytes
# The header of a page: page number, padding, flags, lower and upper end of the unused middle of the page.
HEADER = struct.Struct("=QHHHH")
PAGES = struct.Struct("=12xI")  # the header of an OVERFLOW page ends with the number of pages that the value occupies
OVERFLOW, META = 0x04, 0x08  # bits of the flags in the header of a page


def copy_compact(env: lmdb.Environment, file: Path) -> None:
    """Copy ``env`` without free pages to ``file``, and set the map size to RECORDED_MAP. ``file`` must be data.mdb."""
    env.copy(str(file.parent), compact=True)
    written = env.info()["map_size"].to_bytes(FIELD, sys.byteorder)
    with file.open("r+b") as stream:
        for at, flags in _places(stream, page_size=env.stat()["psize"]):
            stream.seek(at)
            value = stream.read(FIELD)
            assert value == written or not flags & META, f"LMDB {lmdb.version()} records the map size in another place"
            if value == written:
                stream.seek(at)
                stream.write(RECORDED_MAP.to_bytes(FIELD, sys.byteorder))


def _places(stream: BinaryIO, *, page_size: int) -> Iterator[tuple[int, int]]:
    """Yield each offset at which the file stores, or may store, the map size, and the flags of the page there."""
    at, end = 0, stream.seek(0, os.SEEK_END)
    while at < end:
        stream.seek(at)
        head = stream.read(HEADER.size)
        _, _, flags, lower, upper = HEADER.unpack(head)
        if flags & META or (not flags & OVERFLOW and lower <= MAP_SIZE_AT and upper >= MAP_SIZE_AT + FIELD):
            yield at + MAP_SIZE_AT, flags
        at += page_size * (PAGES.unpack(head)[0] if flags & OVERFLOW else 1)
