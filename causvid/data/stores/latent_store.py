"""Read and write LMDBs of latents in the layout of the original CausVid code, to which this project adds checksums.

The original keys are ``latents_{i}_data`` (raw little-endian float16, C order), ``prompts_{i}_data`` (UTF-8),
``latents_shape`` and ``prompts_shape`` (integers separated by spaces, the number of rows first). A row on disk is
[F, C, H, W] for a clip, or [T, F, C, H, W] for an ODE pair of T solver states, the clean state last. This project adds
the keys ``latents_{i}_sha256``, ``metadata`` (JSON) and ``metadata_sha256``. In memory, C is before F; no other module
converts between the two orders.
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
PAGES_PER_ENTRY = 16  # upper bound of the pages that one put copies and splits, in a tree of depth 3 or 4
MORE_ROOM = (
    "LMDB maps the whole file: raise the limit on virtual memory (ulimit -v, or that of the batch system) above "
    "the size of the file"
)


class Record(NamedTuple):
    """One record in memory.

    Attributes:
        latents: [C, F, H, W] for a clip, or [T, C, F, H, W] for an ODE pair. Latents that are read are float16.
        prompt: Caption of the clip or the pair.
    """

    latents: torch.Tensor
    prompt: str


def write_store(
    records: Iterable[Record], folder: Path, *, timesteps: Sequence[float] | None, per_transaction: int
) -> dict[str, Any]:
    """Write a new LMDB with the records in the given order. Equal arguments give equal bytes.

    The LMDB is built in ``<folder>.writing`` and renamed when it is complete. A ``<folder>.writing`` from a killed
    process is deleted first.

    Args:
        records: Latents of one shape, and their prompts.
        folder: Folder to create.
        timesteps: Timesteps of the T states of ODE pairs; None for clips.
        per_transaction: Records per LMDB transaction. Memory holds two copies of these records.

    Returns:
        The metadata: number of records, shape of a row, dtype and timesteps.

    Raises:
        ValueError: The shapes differ, there are no records, a prompt cannot be encoded in UTF-8, or the limit on the
            address space of the process is too low.
        FileExistsError: ``folder`` exists.
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
        size = sum(file.stat().st_size for file in scratch.glob(FILE))  # no file exists if the first map was refused
        raise ValueError(
            f"{folder} has {size} bytes so far, and LMDB cannot get more address space ({error}); {MORE_ROOM}"
        ) from error
    finally:
        shutil.rmtree(scratch)
    return metadata


def _fill(
    env: lmdb.Environment, records: Iterable[Record], *, timesteps: Sequence[float] | None, per_transaction: int
) -> dict[str, Any]:
    """Write the records, then the shapes and the metadata, and return the metadata."""
    shape: tuple[int, ...] | None = None
    count = 0
    remaining = iter(records)
    while True:
        entries: list[tuple[str, bytes]] = []
        for record in islice(remaining, per_transaction):
            row = _to_disk(record.latents)
            if shape is not None and row.shape != shape:
                raise ValueError(f"record {count} has shape {row.shape}, but the records before have {shape}")
            shape = row.shape
            entries += _entries(count, row.tobytes(), record.prompt)
            count += 1
        if not entries:
            break
        _commit(env, entries)
    if shape is None:
        raise ValueError("there are no records; an LMDB needs at least one")
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
    """Return the keys and values of one record."""
    text.require(prompt, f"the prompt of record {index}")
    encoded = prompt.encode()
    return [
        (f"latents_{index}_data", data),
        (f"latents_{index}_sha256", _digest(data, encoded)),
        (f"prompts_{index}_data", encoded),
    ]


def _commit(env: lmdb.Environment, entries: Sequence[tuple[str, bytes]]) -> None:
    """Enlarge the map by an upper bound of the size of ``entries``, and write ``entries`` in one transaction.

    The map is enlarged before the transaction, not after a MapFullError. The pages of an aborted transaction stay in
    LMDB's pool, and their content appears in the gaps of later pages, so that equal records would give different bytes.
    """
    page = env.stat()["psize"]
    used = (env.info()["last_pgno"] + 1 + PAGES_PER_ENTRY) * page  # includes one entry for the list of free pages
    needed = used + sum(len(value) + PAGES_PER_ENTRY * page for _, value in entries)
    if needed > env.info()["map_size"]:
        env.set_mapsize(needed)
    with env.begin(write=True) as transaction:
        for key, value in entries:
            transaction.put(key.encode(), value)


class LatentStore:
    """Reads an LMDB of this project. A record is compared with its sha256 when it is read for the first time.

    The object can be pickled, and used after a fork.

    Attributes:
        folder: Folder of the LMDB.
        metadata: Number of records (``count``), shape of a row on disk, dtype and timesteps.

    Raises:
        ValueError: The LMDB is missing, truncated or damaged. Every method that reads can raise this error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[int] = set()  # numbers of the records that were compared with their checksum
        self._buffer = np.empty(0, DTYPE)
        with self._reading() as transaction:
            packed, digest = (cast("bytes | None", transaction.get(key)) for key in (b"metadata", b"metadata_sha256"))
        if packed is None or digest != _digest(packed):
            raise ValueError(f"{folder}: the metadata are missing or damaged; run pack_lmdb again")
        self.metadata: dict[str, Any] = json.loads(packed)

    def __len__(self) -> int:
        return int(self.metadata["count"])

    def __getitem__(self, index: int) -> Record:
        row = np.empty(self.metadata["shape"], DTYPE)
        prompt = self._read(index, row)
        return Record(row_in_memory(torch.from_numpy(row)), prompt)

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, list[str]]:
        """Read several records.

        Args:
            indices: Numbers of the n records.

        Returns:
            Latents, float16 [n, C, F, H, W] or [n, T, C, F, H, W], and prompts. The latents are a view of a buffer. The
            next call overwrites this buffer, because the allocation of a new buffer takes longer than the copy.
        """
        if len(self._buffer) != len(indices):
            self._buffer = np.empty((len(indices), *self.metadata["shape"]), DTYPE)
        prompts = [self._read(index, self._buffer[position]) for position, index in enumerate(indices)]
        return row_in_memory(torch.from_numpy(self._buffer)), prompts

    def _read(self, index: int, row: np.ndarray[Any, np.dtype[np.float16]]) -> str:
        """Copy the latents of a record into ``row``, and return the prompt."""
        with self._reading(buffers=True) as transaction:
            names = (f"latents_{index}_data", f"prompts_{index}_data", f"latents_{index}_sha256")
            data, prompt, digest = (cast("memoryview | None", transaction.get(name.encode())) for name in names)
            if data is None or prompt is None:
                raise ValueError(f"{self.folder}: record {index} of {len(self)} is missing; run pack_lmdb again")
            if index not in self._verified:
                if digest is None or bytes(digest) != _digest(data, prompt):
                    raise ValueError(
                        f"{self.folder}: record {index} is damaged (its sha256 differs); run pack_lmdb again"
                    )
                self._verified.add(index)
            row[...] = np.frombuffer(data, DTYPE).reshape(row.shape)
            return bytes(prompt).decode()

    def require_timesteps(self, expected: Sequence[float], tolerance: float) -> None:
        """Compare the timesteps of the stored states with a schedule.

        Args:
            expected: Timesteps of the schedule: ``denoising_timesteps`` and the clean end.
            tolerance: Largest accepted difference of two timesteps.

        Raises:
            ValueError: The LMDB has no timesteps, or their number or values differ.
        """
        stored = self.metadata["timesteps"]
        if stored is None or len(stored) != len(expected):
            raise ValueError(
                f"{self.folder} has states at timesteps {stored}, and the schedule needs {list(expected)}; run "
                "generate_ode_pairs and pack_lmdb again, or change schedule.denoising_timesteps"
            )
        if any(abs(a - b) > tolerance for a, b in zip(stored, expected, strict=True)):
            raise ValueError(
                f"{self.folder} has states at timesteps {[round(t, 1) for t in stored]}, and the schedule needs "
                f"{list(expected)}; run generate_ode_pairs and pack_lmdb again, or change schedule.denoising_timesteps"
            )

    @contextmanager
    def _reading(self, *, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        try:
            begin: Any = _environment(self.folder.resolve()).begin
            with begin(buffers=buffers) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise ValueError(f"{self.folder} is damaged ({error}); run pack_lmdb again") from error


def read_prompts(folder: Path) -> list[str]:
    """Return the prompts of an LMDB of this project or of the original CausVid code, in the order of the rows.

    In an LMDB of the original code, a prompt that is not UTF-8 is skipped, with a message on stderr. An import of the
    LMDB skips the row of such a prompt too.

    Raises:
        ValueError: The LMDB is damaged or has no prompts.
    """
    encoded: dict[int, bytes] = {}
    try:
        with _environment(folder.resolve()).begin() as transaction:
            has_metadata = transaction.get(b"metadata") is not None  # only LMDBs of this project have this key
            shape = transaction.get(b"latents_shape")
            counted = re.match(rb"\d+", shape) if shape is not None else None
            count = int(counted[0]) if counted else None  # an earlier build of the LMDB wrote any later rows
            cursor = transaction.cursor()
            cursor.set_range(b"prompts_")  # keys are sorted, so that the cursor does not read the latents
            for key, value in cursor:
                if named := re.fullmatch(rb"prompts_(\d+)_data", key):
                    encoded[int(named[1])] = bytes(value)
    except lmdb.Error as error:
        raise ValueError(f"{folder} is damaged ({error}); its prompts cannot be read") from error
    prompts = []
    for index in sorted(index for index in encoded if count is None or index < count):
        reason = text.undecodable(encoded[index])
        if reason is None:
            prompts.append(encoded[index].decode())
        elif has_metadata:
            raise ValueError(f"{folder}: record {index} is damaged (its prompt {reason}); run pack_lmdb again")
        else:
            sys.stderr.write(f"{folder}: {left_out(index, f'its prompt {reason}')}\n")
    if not prompts:
        raise ValueError(f"{folder} holds no prompts; name an LMDB that has some")
    return prompts


def left_out(index: int, reason: str) -> str:
    """Return the message about a rejected row of an LMDB of the original code."""
    return f"row {index} is left out: {reason}"


@lru_cache(maxsize=16)
def _environment_of(folder: Path, file: int) -> lmdb.Environment:
    return open_store(folder)


# LMDB handles are not valid after a fork, so that the parent and the child must open new handles.
os.register_at_fork(before=_environment_of.cache_clear)


def _environment(folder: Path) -> lmdb.Environment:
    """Return the handle of an LMDB. LMDB allows only one handle per process and file."""
    file = folder / FILE
    return _environment_of(folder, file.stat().st_ino if file.is_file() else 0)


def open_store(folder: Path) -> lmdb.Environment:
    """Open ``folder``/data.mdb for reading. Raises ValueError if the file is missing, unreadable or truncated."""
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{folder} holds no {FILE}; run pack_lmdb, or name a folder that has one")
    try:
        # lock=False, because a reader must not create a lock file in a tracked folder. The kernel's readahead is on:
        # a record has several contiguous megabytes, and reading such a record page by page takes several times as long.
        env = lmdb.open(str(folder), readonly=True, lock=False, meminit=False)
    except lmdb.MemoryError as error:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes, and LMDB gets no address space ({error}); {MORE_ROOM}"
        ) from error
    except lmdb.Error as error:
        raise ValueError(f"{file} is not a readable LMDB ({error}); copy or pack it again") from error
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < needed:  # a read beyond the end would kill the process
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
    """Return a view [..., C, F, H, W] of a row [..., F, C, H, W]."""
    return row.transpose(-4, -3)
