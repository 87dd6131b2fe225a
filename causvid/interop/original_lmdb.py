"""Check LMDBs of the original CausVid code (``mixkit_latents_lmdb``, ``mixkit_ode_lmdb``), and convert them.

The format is described in causvid/data/stores/latent_store.py. An LMDB of the original code has no checksums and no
metadata. Such an LMDB, called "released LMDB" in this file, can have these faults:

- The script that builds an LMDB copies the shape in ``latents_shape`` from its last input file. If this file contained
  only duplicates, ``latents_shape`` stores a number of rows, but no shape.
- After a second build in the same folder, rows of the first build remain after the last row. After an interrupted
  build, rows or the shape are missing.
- A prompt may not be UTF-8. The import omits the row of such a prompt and lists the row in rejected.jsonl.
- ``.half()`` converts large values to infinity without an error.
- The timesteps of the states of ODE pairs are not stored.

Without checksums, a wrong value with the correct size cannot be detected, and a damaged page may crash the process.

``python -m causvid.interop.original_lmdb check SRC`` lists the faults, and whether ``import SRC DST`` repairs them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Any

import lmdb
import numpy as np
import torch
import typer

from causvid.data.shards import REJECTED
from causvid.data.stores.latent_store import DTYPE, Record, left_out, open_store, row_in_memory, write_store
from causvid.data.videos import manifest
from causvid.runtime import text
from causvid.runtime.files import publish

# Shapes of the rows that the original scripts write: latents of 81 frames of 480 x 832 pixels, and four solver states.
RELEASED_ROWS = [(21, 16, 60, 104), (4, 21, 16, 60, 104)]
AXES = {4: "F,C,H,W", 5: "T,F,C,H,W"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault of an LMDB.

    Attributes:
        code: Stable identifier of the kind of fault.
        sentence: Description for users.
        repairable: Whether an import repairs or skips the fault.
    """

    code: str
    sentence: str
    repairable: bool


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The content of a released LMDB.

    Attributes:
        rows: Indices of the rows that can be imported, in ascending order.
        rejected: Maps the index of each row whose prompt is not UTF-8 to the reason.
        row_shape: Shape of one row on disk: [F, C, H, W] or [T, F, C, H, W].
        findings: The faults.
    """

    rows: tuple[int, ...]
    rejected: Mapping[int, str]
    row_shape: tuple[int, ...]
    findings: tuple[Finding, ...]


def survey(folder: Path, *, row_shape: Sequence[int] | None = None) -> Survey:
    """Check every key of a released LMDB, but not the values of the latents.

    Args:
        folder: The folder with data.mdb.
        row_shape: Shape of a row, (F, C, H, W) or (T, F, C, H, W); needed if the LMDB does not contain this shape.

    Raises:
        ValueError: The LMDB cannot be read or has no rows, or the shape of a row is unknown.
    """
    findings: list[Finding] = []
    with _reading(folder) as transaction:
        sizes, prompts = _keys(transaction, "latents"), _keys(transaction, "prompts")
        if not sizes:
            raise ValueError(f"{folder} has no key latents_0_data: it is empty, or not in the released layout")
        count, recorded = _recorded(transaction, findings)
        shape = _row_shape(folder, row_shape, recorded, set(sizes.values()), findings)
        count = max(sizes) + 1 if count is None else count
        for index in sorted(i for i in sizes.keys() ^ prompts.keys() if i < count):
            has, lacks = ("latents", "prompt") if index in sizes else ("a prompt", "latents")
            findings.append(
                Finding(code="half_row", sentence=f"row {index} has {has} but no {lacks}", repairable=False)
            )
        complete = sorted(i for i in sizes.keys() & prompts.keys() if i < count)
        reasons = ((i, text.undecodable(bytes(_value(transaction, "prompts", i)))) for i in complete)
        rejected = {i: f"its prompt {reason}" for i, reason in reasons if reason}
        findings += [Finding(code="prompt", sentence=left_out(i, rejected[i]), repairable=True) for i in rejected]
        rows = tuple(i for i in complete if i not in rejected)
        stale, missing = sum(i >= count for i in sizes), count - sum(i < count for i in sizes.keys() | prompts.keys())
        if stale:
            sentence = f"{stale} rows of an earlier build follow the last of {count} rows; the import skips them"
            findings.append(Finding(code="stale_rows", sentence=sentence, repairable=True))
        if missing:
            sentence = (
                f"{missing} of {count} rows are missing: the build was interrupted; the import renumbers the rest"
            )
            findings.append(Finding(code="missing_rows", sentence=sentence, repairable=True))
        expected = prod(shape) * DTYPE.itemsize
        for index in rows:
            if sizes[index] != expected:
                sentence = f"row {index} has {sizes[index]} bytes; the shape {shape} in float16 has {expected}"
                findings.append(Finding(code="row_size", sentence=sentence, repairable=False))
    return Survey(rows=rows, rejected=rejected, row_shape=shape, findings=tuple(findings))


def import_store(
    source: Path,
    target: Path,
    *,
    row_shape: Sequence[int] | None = None,
    timesteps: Sequence[float] | None = None,
    per_transaction: int = 256,
) -> dict[str, Any]:
    """Convert a released LMDB to the layout of this project, with the same values.

    Rows whose prompt is not UTF-8 are omitted, printed on stderr and listed in ``target``/rejected.jsonl.

    Args:
        source: The folder of the released LMDB.
        target: The folder to create.
        row_shape: Shape of a row, (F, C, H, W) or (T, F, C, H, W); needed if the LMDB does not contain this shape.
        timesteps: Timesteps of the T states of ODE pairs, from noise to clean (1000, 757, 522, 0 for the published
            LMDB); None for clips.
        per_transaction: Number of records in one LMDB transaction. These records are in memory at the same time.

    Returns:
        The metadata of the new LMDB.

    Raises:
        ValueError: Faults cannot be repaired, a value is not finite, or the number or order of timesteps is wrong.
        FileExistsError: ``target`` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")
    found = survey(source, row_shape=row_shape)
    broken = [finding.sentence for finding in found.findings if not finding.repairable]
    if broken or not found.rows:
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(f"{source} cannot be imported: {'; '.join(broken[:5]) or 'there is no valid row'}{more}")
    _require_timesteps(found.row_shape, timesteps)
    for index, reason in found.rejected.items():
        sys.stderr.write(f"{source}: {left_out(index, reason)}\n")

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as building:
        store = Path(building) / "store"
        metadata = write_store(_records(source, found), store, timesteps=timesteps, per_transaction=per_transaction)
        if found.rejected:
            rows = ({"id": str(i), "code": text.NOT_UTF8, "reason": reason} for i, reason in found.rejected.items())
            manifest.write_rows(store / REJECTED, rows)
        publish(store, target)
    return metadata


def _require_timesteps(row_shape: Sequence[int], timesteps: Sequence[float] | None) -> None:
    """Raise ValueError if ``timesteps`` does not fit the states in a row, or does not decrease from noise to clean."""
    states = row_shape[0] if len(row_shape) == 5 else None
    if states != (len(timesteps) if timesteps else None):
        raise ValueError(
            f"timesteps is {list(timesteps) if timesteps else 'not given'}; rows of shape {row_shape} "
            + (f"have {states} states and need {states} timesteps" if states else "are clips and have no timesteps")
        )
    if timesteps and not (timesteps[0] <= 1000 and timesteps[-1] >= 0 and all(a > b for a, b in pairwise(timesteps))):
        raise ValueError(f"timesteps is {list(timesteps)}; it must decrease strictly, with values from 1000 to 0")


def _records(source: Path, found: Survey) -> Iterator[Record]:
    """Yield the valid rows of a released LMDB. Raises ValueError if a value is not finite."""
    with _reading(source) as transaction:
        for index in found.rows:
            row = np.frombuffer(_value(transaction, "latents", index), DTYPE).reshape(found.row_shape)
            if not np.isfinite(row).all():
                raise ValueError(f"{source}: row {index} has values that are not finite (float16 maximum: 65504)")
            latents = row_in_memory(torch.from_numpy(row.astype(np.float32)))
            yield Record(latents, bytes(_value(transaction, "prompts", index)).decode())


@contextmanager
def _reading(folder: Path) -> Iterator[lmdb.Transaction]:
    """Open a read transaction whose values are memory views."""
    environment = open_store(folder)
    try:
        with environment.begin(buffers=True) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise ValueError(f"{folder} is damaged ({error}); copy it again") from error
    finally:
        environment.close()


def _value(transaction: lmdb.Transaction, name: str, index: int) -> memoryview:
    """Return the bytes of a row, which must exist."""
    value = transaction.get(f"{name}_{index}_data".encode())
    assert value is not None
    return memoryview(value)


def _keys(transaction: lmdb.Transaction, name: str) -> dict[int, int]:
    """Map the index of each key ``name``_INDEX_data to the size of its value in bytes."""
    pattern = re.compile(rf"{name}_(0|[1-9]\d*)_data".encode())
    cursor = transaction.cursor()
    found = ((pattern.fullmatch(bytes(key)), len(value)) for key, value in cursor)
    return {int(match[1]): size for match, size in found if match}


def _recorded(transaction: lmdb.Transaction, findings: list[Finding]) -> tuple[int | None, tuple[int, ...] | None]:
    """Read the number of rows and the shape of a row from ``latents_shape``. A missing number or shape is None."""
    value = transaction.get(b"latents_shape")
    content = None if value is None else bytes(value).decode("utf-8", "replace")
    if content is None or not re.fullmatch(r"\d{1,12}( \d{1,12})*", content):
        fault = "is missing" if content is None else f"is {content[:60]!r}"
        findings.append(
            Finding(code="no_shape", sentence=f"latents_shape {fault}: the build was interrupted", repairable=True)
        )
        return None, None
    count, *shape = map(int, content.split(" "))
    if shape:
        return count, tuple(shape)
    sentence = f"latents_shape is {content!r}, a count without a shape: the last input file had only duplicates"
    findings.append(Finding(code="count_only", sentence=sentence, repairable=True))
    return count, None


def _row_shape(
    folder: Path,
    given: Sequence[int] | None,
    recorded: tuple[int, ...] | None,
    sizes: set[int],
    findings: list[Finding],
) -> tuple[int, ...]:
    known = [shape for shape in RELEASED_ROWS if {prod(shape) * DTYPE.itemsize} == sizes]
    shape = tuple(given) if given else recorded or (known[0] if known else None)
    if shape is None:
        raise ValueError(
            f"{folder} does not contain the shape of a row ({findings[-1].sentence}); its rows have "
            f"{', '.join(map(str, sorted(sizes)[:5]))} bytes of float16: pass --row-shape {' or '.join(AXES.values())}"
        )
    if given and recorded and shape != recorded:
        raise ValueError(f"row_shape is {shape}, but the shape in {folder} is {recorded}; omit row_shape")
    if len(shape) not in AXES or min(shape) < 1:
        raise ValueError(f"{folder}: the shape of a row is {shape}; expected {' or '.join(AXES.values())}")
    return shape


app = typer.Typer(add_completion=False, help="Check and convert LMDBs of the original CausVid code.")
Source = Annotated[Path, typer.Argument(metavar="SRC", help="folder with a data.mdb of the original code")]
RowShape = Annotated[str | None, typer.Option(help="F,C,H,W or T,F,C,H,W; needed if SRC does not contain the shape")]


@app.command("check")
def check_command(source: Source, row_shape: RowShape = None) -> None:
    """Print the content and the faults of SRC. The exit code is 1 if an import cannot repair all faults."""
    try:
        found = survey(source, row_shape=_numbers(int, row_shape))
    except ValueError as error:
        sys.exit(str(error))
    print(f"{source}: {len(found.rows)} rows of {AXES[len(found.row_shape)]} = {found.row_shape}")
    for finding in found.findings:
        print(f"{'repaired by import' if finding.repairable else 'NOT REPAIRED'}: {finding.sentence}")
    if not all(finding.repairable for finding in found.findings):
        sys.exit(1)


@app.command("import")
def import_command(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", help="folder to create")],
    row_shape: RowShape = None,
    timesteps: Annotated[
        str | None, typer.Option(help="timesteps of the states of ODE pairs (published LMDB: 1000,757,522,0)")
    ] = None,
) -> None:
    """Convert SRC to an LMDB that training stages read, with a checksum for every record."""
    try:
        shape, times = _numbers(int, row_shape), _numbers(float, timesteps)
        metadata = import_store(source, target, row_shape=shape, timesteps=times)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{target}: {metadata['count']} rows of {tuple(metadata['shape'])}")


def _numbers(kind: type[Any], given: str | None) -> list[Any] | None:
    if given is None:
        return None
    try:
        return [kind(part) for part in given.split(",")]
    except ValueError as error:
        raise ValueError(f"{given!r} is not a list of numbers separated by commas") from error


if __name__ == "__main__":
    app()
