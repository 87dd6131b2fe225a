"""Write compacting copies of an LMDB whose bytes do not depend on the size of the memory map.

LMDB records the size of the map in its two meta pages. LMDB's compacting copy also reuses a write buffer without
clearing it, so that the field appears again in the unused middle of some later pages. This module sets the field to a
constant in all these places. Readers ignore the field and map the size of the file.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import lmdb

RECORDED_MAP = 2**40  # bytes; never mapped
MAP_SIZE_AT = 32  # offset in a meta page: page header 16 bytes, magic 4, version 4, address 8
FIELD = 8  # bytes
HEADER = struct.Struct("=QHHHH")  # page number, padding, flags, lower and upper end of the unused middle
PAGES = struct.Struct("=12xI")  # number of pages that the value takes, in the header of an OVERFLOW page
OVERFLOW, META = 0x04, 0x08  # bits of the flags


def copy_compact(env: lmdb.Environment, file: Path) -> None:
    """Copy ``env`` without free pages to ``file``, whose name must be data.mdb, with RECORDED_MAP as the map size."""
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
    """Yield every offset at which the file has, or may have, the map size, and the flags of the page."""
    at, end = 0, stream.seek(0, os.SEEK_END)
    while at < end:
        stream.seek(at)
        head = stream.read(HEADER.size)
        _, _, flags, lower, upper = HEADER.unpack(head)
        if flags & META or (not flags & OVERFLOW and lower <= MAP_SIZE_AT and upper >= MAP_SIZE_AT + FIELD):
            yield at + MAP_SIZE_AT, flags
        at += page_size * (PAGES.unpack(head)[0] if flags & OVERFLOW else 1)
