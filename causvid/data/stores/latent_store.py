"""LMDB of latents in the released layout, with what the released layout lacks: checks.

Keys ``latents_{i}_data`` (raw little-endian float16, C order), ``prompts_{i}_data`` (UTF-8), ``latents_shape`` and
``prompts_shape`` (space-joined integers, count first). A row is [F, C, H, W] (clips) or [T, F, C, H, W] (ODE pairs: T
solver states, the clean one last). Ours adds ``latents_{i}_sha256`` and ``metadata`` (JSON). In memory the axes are
[C, F, H, W]: this file is the one place that converts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import lmdb
import numpy as np
import torch

from causvid.data.stores.lmdb_copy import copy_compact
from causvid.runtime import text

DTYPE = np.dtype("<f2")
FILE = "data.mdb"
PAGES_PER_ENTRY = 16  # upper bound of the tree pages that one put copies and splits: LMDB's trees are 3 or 4 pages deep
MORE_ROOM = (
    "LMDB maps the whole file: raise the limit on virtual memory (ulimit -v, or the batch system's) above its size"
)


class Source(StrEnum):
    """Origin of an LMDB: shards of this run, or an LMDB of the released code."""

    OURS = "ours"
    RELEASED = "released"


class Record(NamedTuple):
    """latents: [C, F, H, W] or [T, C, F, H, W], float16 when they are read; prompt: its caption."""

    latents: torch.Tensor
    prompt: str


def write_store(
    records: Iterable[Record], folder: Path, *, timesteps: Sequence[float] | None, per_transaction: int
) -> dict[str, Any]:
    """Write ``records`` in their order as a new LMDB ``folder``/data.mdb. Equal arguments give equal bytes.

    The store is built in ``folder``.writing beside it, and appears as ``folder`` when it is complete. Leftovers of a
    killed process in ``folder``.writing are removed first.

    Args:
        records: Latents of one shape, and their prompts.
        folder: Folder to make.
        timesteps: Times of the T states of ODE pairs; None for clips.
        per_transaction: Records in one LMDB transaction, which are held in memory twice.

    Returns:
        The metadata: count, shape of a row, dtype, timesteps.

    Raises:
        ValueError: When shapes differ, when there are no records, when UTF-8 cannot hold a prompt, or when the limit on
            this process's address space leaves no room for the store.
        FileExistsError: When ``folder`` exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder or remove it")
    scratch = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    compact = scratch / "compact"
    compact.mkdir(parents=True)
    try:
        with lmdb.open(str(scratch), lock=False) as env:
            metadata = _fill(env, records, timesteps=timesteps, per_transaction=per_transaction)
            copy_compact(env, compact / FILE)
        compact.rename(folder)
    except lmdb.MemoryError as error:
        size = sum(file.stat().st_size for file in scratch.glob(FILE))  # none yet when the first map was refused
        raise ValueError(
            f"{folder} has {size} bytes so far, and the process gets no more address space ({error}); {MORE_ROOM}"
        ) from error
    finally:
        shutil.rmtree(scratch)
    return metadata


def _fill(
    env: lmdb.Environment, records: Iterable[Record], *, timesteps: Sequence[float] | None, per_transaction: int
) -> dict[str, Any]:
    """Write the records, then the shapes and the metadata, which is returned."""
    shape: tuple[int, ...] | None = None
    count = 0
    remaining = iter(records)
    while True:
        entries: list[tuple[str, bytes]] = []
        for record in islice(remaining, per_transaction):
            row = _to_disk(record.latents)
            if shape is not None and row.shape != shape:
                raise ValueError(f"record {count} has shape {row.shape}; the ones before have {shape}")
            shape = row.shape
            entries += _entries(count, row.tobytes(), record.prompt)
            count += 1
        if not entries:
            break
        _commit(env, entries)
    if shape is None:
        raise ValueError("there is nothing to pack: no shards")
    metadata = {
        "count": count,
        "shape": list(shape),
        "dtype": "float16",
        "timesteps": list(timesteps) if timesteps else None,
    }
    packed = json.dumps(metadata, sort_keys=True).encode()
    shapes = [("latents_shape", " ".join(map(str, (count, *shape))).encode()), ("prompts_shape", str(count).encode())]
    _commit(env, [*shapes, ("metadata", packed), ("metadata_sha256", _digest(packed))])
    return metadata


def _entries(index: int, data: bytes, prompt: str) -> list[tuple[str, bytes]]:
    """Keys and values of one record."""
    text.require(prompt, f"the prompt of record {index}")
    encoded = prompt.encode()
    return [
        (f"latents_{index}_data", data),
        (f"latents_{index}_sha256", _digest(data, encoded)),
        (f"prompts_{index}_data", encoded),
    ]


def _commit(env: lmdb.Environment, entries: Sequence[tuple[str, bytes]]) -> None:
    """Write ``entries`` in one transaction, after enlarging the map by the most they can need.

    The room is made before, not on MapFullError: an aborted transaction leaves its pages in LMDB's pool, and their
    content appears in the gaps of later pages, so that equal records would give different bytes.
    """
    page = env.stat()["psize"]
    used = (env.info()["last_pgno"] + 1 + PAGES_PER_ENTRY) * page  # the list of free pages is an entry as well
    needed = used + sum(len(value) + PAGES_PER_ENTRY * page for _, value in entries)
    if needed > env.info()["map_size"]:
        env.set_mapsize(needed)
    with env.begin(write=True) as transaction:
        for key, value in entries:
            transaction.put(key.encode(), value)


class LatentStore:
    """Reads such an LMDB. Every record, prompt included, is held against its sha256 when it is read for the first time.

    Can be pickled and used after a fork. Raises ValueError, naming the file and the record, for a missing, truncated or
    damaged store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sound: set[int] = set()  # records that were compared with their sum
        self._buffer = np.empty(0, DTYPE)
        with self._reading() as transaction:
            found, digest = (cast("bytes | None", transaction.get(key)) for key in (b"metadata", b"metadata_sha256"))
        if found is None or digest != _digest(found):
            raise ValueError(f"{folder}: its metadata is missing or damaged; pack it again")
        self.metadata: dict[str, Any] = json.loads(found)

    def __len__(self) -> int:
        return int(self.metadata["count"])

    def __getitem__(self, index: int) -> Record:
        row = np.empty(self.metadata["shape"], DTYPE)
        prompt = self._read(index, row)
        return Record(row_in_memory(torch.from_numpy(row)), prompt)

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, list[str]]:
        """Latents float16 [n, C, F, H, W] or [n, T, C, F, H, W] of n records, and their prompts.

        One copy from the file's pages into a buffer that the next batch overwrites: fresh memory costs more than that.
        """
        if len(self._buffer) != len(indices):
            self._buffer = np.empty((len(indices), *self.metadata["shape"]), DTYPE)
        prompts = [self._read(index, self._buffer[position]) for position, index in enumerate(indices)]
        return row_in_memory(torch.from_numpy(self._buffer)), prompts

    def _read(self, index: int, row: np.ndarray[Any, np.dtype[np.float16]]) -> str:
        """Fill ``row`` with the latents of a record; return its prompt."""
        with self._reading(buffers=True) as transaction:
            names = (f"latents_{index}_data", f"prompts_{index}_data", f"latents_{index}_sha256")
            data, prompt, digest = (cast("memoryview | None", transaction.get(name.encode())) for name in names)
            if data is None or prompt is None:
                raise ValueError(f"{self.folder}: record {index} of {len(self)} is missing; pack it again")
            if index not in self._sound:
                if digest is None or bytes(digest) != _digest(data, prompt):
                    raise ValueError(f"{self.folder}: record {index} is damaged (its sha256 differs); pack it again")
                self._sound.add(index)
            row[...] = np.frombuffer(data, DTYPE).reshape(row.shape)
            return bytes(prompt).decode()

    def require_timesteps(self, expected: Sequence[float], tolerance: float) -> None:
        """Refuse states of other times than ``expected``. Raises ValueError showing both."""
        stored = self.metadata["timesteps"]
        if stored is None or len(stored) != len(expected):
            raise ValueError(
                f"{self.folder} stores states at timesteps {stored}; the schedule asks for {list(expected)}"
            )
        if any(abs(a - b) > tolerance for a, b in zip(stored, expected, strict=True)):
            raise ValueError(
                f"{self.folder} stores states at timesteps {[round(t, 1) for t in stored]}; "
                f"schedule.denoising_timesteps asks for {list(expected)}: run generate_ode_pairs, or change it back"
            )

    @contextmanager
    def _reading(self, *, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        try:
            begin: Any = _environment(self.folder.resolve()).begin
            with begin(buffers=buffers) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise ValueError(f"{self.folder} is damaged ({error}); pack it again") from error


def read_prompts(folder: Path) -> list[str]:
    """Every prompt of an LMDB, ours or a released one, in the order of its rows.

    A row of a released one whose prompt is not UTF-8 is left out, as an import leaves it out, and named on stderr.

    Raises:
        ValueError: When the LMDB is damaged or holds no prompts.
    """
    found: dict[int, bytes] = {}
    try:
        with _environment(folder.resolve()).begin() as transaction:
            ours = transaction.get(b"metadata") is not None
            shape = transaction.get(b"latents_shape")
            counted = re.match(rb"\d+", shape) if shape is not None else None
            count = int(counted[0]) if counted else None  # rows behind it are left from an earlier build
            cursor = transaction.cursor()
            cursor.set_range(b"prompts_")  # sorted keys: the latents before them are not touched
            for key, value in cursor:
                if named := re.fullmatch(rb"prompts_(\d+)_data", key):
                    found[int(named[1])] = bytes(value)
    except lmdb.Error as error:
        raise ValueError(f"{folder} is damaged ({error}); its prompts cannot be read") from error
    prompts = []
    for index in sorted(index for index in found if count is None or index < count):
        reason = text.undecodable(found[index])
        if reason is None:
            prompts.append(found[index].decode())
        elif ours:
            raise ValueError(f"{folder}: record {index} is damaged (its prompt {reason}); pack it again")
        else:
            sys.stderr.write(f"{folder}: {left_out(index, f'its prompt {reason}')}\n")
    if not prompts:
        raise ValueError(f"{folder} holds no prompts")
    return prompts


def left_out(index: int, reason: str) -> str:
    """The sentence about a row of a released LMDB that is rejected."""
    return f"row {index} is left out: {reason}"


@lru_cache(maxsize=16)
def _environment_of(folder: Path, file: int) -> lmdb.Environment:
    return open_store(folder)


# No handle survives a fork: parent and child open their own again.
os.register_at_fork(before=_environment_of.cache_clear)


def _environment(folder: Path) -> lmdb.Environment:
    """One handle per process and file: LMDB forbids two."""
    file = folder / FILE
    return _environment_of(folder, file.stat().st_ino if file.is_file() else 0)


def open_store(folder: Path) -> lmdb.Environment:
    """``folder``/data.mdb for reading. Raises ValueError when it is not there, not readable or cut short."""
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{folder} holds no {FILE}; run the stage that packs it, or name the folder that has one")
    try:
        # lock=False: a reader must not create a lock file inside a tracked folder. The kernel may read ahead: a record
        # is megabytes in a row, and page by page a cold one takes several times as long (docs/log.md).
        env = lmdb.open(str(folder), readonly=True, lock=False, meminit=False)
    except lmdb.MemoryError as error:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes and gets no address space ({error}); {MORE_ROOM}"
        ) from error
    except lmdb.Error as error:
        raise ValueError(f"{file} is not a readable LMDB ({error}); copy or pack it again") from error
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < needed:  # reading beyond the end would kill the process, not raise
        env.close()
        raise ValueError(f"{file} is truncated: {file.stat().st_size} of {needed} bytes; copy or pack it again")
    return env


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _to_disk(latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float16]]:
    return np.ascontiguousarray(latents.transpose(-4, -3).to(torch.float16).numpy(), dtype=DTYPE)


def row_in_memory(row: torch.Tensor) -> torch.Tensor:
    """A view of a row [..., F, C, H, W] with the axes it has in memory, [..., C, F, H, W]."""
    return row.transpose(-4, -3)
