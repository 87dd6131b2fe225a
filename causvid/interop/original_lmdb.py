"""LMDBs of the released CausVid (``mixkit_latents_lmdb``, ``mixkit_ode_lmdb``): check them, and make ours of them.

Format: causvid/data/stores/latent_store.py, without its sums and metadata. What the released builder leaves behind:

- it writes ``latents_shape`` from its last input file, so that only the count is left when that was a duplicate;
- built twice into one folder, rows of the first build stay behind the count; killed, rows or the shape are missing;
- a prompt that is not UTF-8 is the end of its row: an import leaves the row out and lists it in rejected.jsonl;
- ``.half()`` turns large values into infinities, silently;
- the times of an ODE pair's states are nowhere: who made them knows.

There are no sums in it: a wrong value of the right size cannot be told, and a page damaged inside may end the process.

``python -m causvid.interop.original_lmdb check SRC`` says what is wrong and whether ``import SRC DST`` mends it.
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

# The two rows the released scripts make: 81 frames of 480 x 832 under Wan's VAE, alone and as four solver states.
RELEASED_ROWS = [(21, 16, 60, 104), (4, 21, 16, 60, 104)]
AXES = {4: "F,C,H,W", 5: "T,F,C,H,W"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be. code: a stable word; mended: an import leaves it behind."""

    code: str
    sentence: str
    mended: bool


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The content of a released LMDB.

    rows: indices that can be read, in order; rejected: reasons of those whose prompt is not UTF-8; row_shape: of one
    row, as on disk.
    """

    rows: tuple[int, ...]
    rejected: Mapping[int, str]
    row_shape: tuple[int, ...]
    findings: tuple[Finding, ...]


def survey(folder: Path, *, row_shape: Sequence[int] | None = None) -> Survey:
    """Look at every key of the LMDB ``folder``, not at the latents' values.

    row_shape: (F, C, H, W) or (T, F, C, H, W), where the LMDB itself does not tell. Raises ValueError when the folder
    is no readable LMDB, when it has no rows, and when no row's shape is known.
    """
    findings: list[Finding] = []
    with _reading(folder) as transaction:
        sizes, prompts = _keys(transaction, "latents"), _keys(transaction, "prompts")
        if not sizes:
            raise ValueError(f"{folder} has no key latents_0_data: it is not of the released layout, or empty")
        count, recorded = _recorded(transaction, findings)
        shape = _row_shape(folder, row_shape, recorded, set(sizes.values()), findings)
        count = max(sizes) + 1 if count is None else count
        for index in sorted(i for i in sizes.keys() ^ prompts.keys() if i < count):
            has, lacks = ("latents", "prompt") if index in sizes else ("a prompt", "latents")
            findings.append(Finding(code="half_row", sentence=f"row {index} has {has} but no {lacks}", mended=False))
        whole = sorted(i for i in sizes.keys() & prompts.keys() if i < count)
        read = ((i, text.undecodable(bytes(_value(transaction, "prompts", i)))) for i in whole)
        rejected = {i: f"its prompt {reason}" for i, reason in read if reason}
        findings += [Finding(code="prompt", sentence=left_out(i, rejected[i]), mended=True) for i in rejected]
        rows = tuple(i for i in whole if i not in rejected)
        stale, missing = sum(i >= count for i in sizes), count - sum(i < count for i in sizes.keys() | prompts.keys())
        if stale:
            sentence = f"{stale} rows stand behind the count of {count}: left by an earlier build, ignored"
            findings.append(Finding(code="stale_rows", sentence=sentence, mended=True))
        if missing:
            sentence = f"{missing} of {count} rows are missing: the build was cut short; the others are numbered anew"
            findings.append(Finding(code="missing_rows", sentence=sentence, mended=True))
        expected = prod(shape) * DTYPE.itemsize
        for index in rows:
            if sizes[index] != expected:
                sentence = f"row {index} has {sizes[index]} bytes; the shape {shape} in float16 has {expected}"
                findings.append(Finding(code="row_size", sentence=sentence, mended=False))
    return Survey(rows=rows, rejected=rejected, row_shape=shape, findings=tuple(findings))


def import_store(
    source: Path,
    target: Path,
    *,
    row_shape: Sequence[int] | None = None,
    timesteps: Sequence[float] | None = None,
    per_transaction: int = 256,
) -> dict[str, Any]:
    """Make the LMDB ``target`` of ours from the released ``source``, values bit for bit; returns its metadata.

    Rows whose prompt is not UTF-8 are left out: stderr names them, and ``target``/rejected.jsonl lists why.

    timesteps: of the T states of ODE pairs, from noise to clean (as released: 1000, 757, 522, 0); none for clips.
    Raises ValueError naming every fault that cannot be mended, a row that is not finite, and missing or needless
    timesteps; FileExistsError when ``target`` is there.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")
    found = survey(source, row_shape=row_shape)
    broken = [finding.sentence for finding in found.findings if not finding.mended]
    if broken or not found.rows:
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(f"{source} cannot be imported: {'; '.join(broken[:5]) or 'no row is whole'}{more}")
    states = found.row_shape[0] if len(found.row_shape) == 5 else None
    if states != (len(timesteps) if timesteps else None):
        raise ValueError(
            f"timesteps is {list(timesteps) if timesteps else 'not given'}; rows of shape {found.row_shape} "
            + (f"hold {states} states and need as many times" if states else "are clips and have none")
        )

    if timesteps and not (timesteps[0] <= 1000 and timesteps[-1] >= 0 and all(a > b for a, b in pairwise(timesteps))):
        raise ValueError(f"timesteps is {list(timesteps)}; states go from noise to clean: falling, within 1000 and 0")

    for index, reason in found.rejected.items():
        sys.stderr.write(f"{source}: {left_out(index, reason)}\n")

    def records() -> Iterator[Record]:
        with _reading(source) as transaction:
            for index in found.rows:
                row = np.frombuffer(_value(transaction, "latents", index), DTYPE).reshape(found.row_shape)
                if not np.isfinite(row).all():
                    raise ValueError(f"{source}: row {index} holds values that are not finite (float16 ends at 65504)")
                latents = row_in_memory(torch.from_numpy(row.astype(np.float32)))
                yield Record(latents, bytes(_value(transaction, "prompts", index)).decode())

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as building:
        store = Path(building) / "store"
        metadata = write_store(records(), store, timesteps=timesteps, per_transaction=per_transaction)
        if found.rejected:
            rows = ({"id": str(i), "code": text.NOT_UTF8, "reason": reason} for i, reason in found.rejected.items())
            manifest.write_rows(store / REJECTED, rows)
        publish(store, target)
    return metadata


@contextmanager
def _reading(folder: Path) -> Iterator[lmdb.Transaction]:
    """A read transaction whose values are views."""
    environment = open_store(folder)
    try:
        with environment.begin(buffers=True) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise ValueError(f"{folder} is damaged ({error}); copy it again") from error
    finally:
        environment.close()


def _value(transaction: lmdb.Transaction, name: str, index: int) -> memoryview:
    """The bytes of a row that is there."""
    value = transaction.get(f"{name}_{index}_data".encode())
    assert value is not None
    return memoryview(value)


def _keys(transaction: lmdb.Transaction, name: str) -> dict[int, int]:
    """Row number → bytes of its value."""
    pattern = re.compile(rf"{name}_(0|[1-9]\d*)_data".encode())
    cursor = transaction.cursor()
    found = ((pattern.fullmatch(bytes(key)), len(value)) for key, value in cursor)
    return {int(match[1]): size for match, size in found if match}


def _recorded(transaction: lmdb.Transaction, findings: list[Finding]) -> tuple[int | None, tuple[int, ...] | None]:
    """The count and the row's shape that ``latents_shape`` tells, as far as it does."""
    value = transaction.get(b"latents_shape")
    found = None if value is None else bytes(value).decode("utf-8", "replace")
    if found is None or not re.fullmatch(r"\d{1,12}( \d{1,12})*", found):
        told = "is missing" if found is None else f"is {found[:60]!r}"
        findings.append(
            Finding(code="no_shape", sentence=f"latents_shape {told}: the build was cut short", mended=True)
        )
        return None, None
    count, *shape = map(int, found.split(" "))
    if shape:
        return count, tuple(shape)
    sentence = f"latents_shape is {found!r}, a count alone: the last file of the build held nothing new"
    findings.append(Finding(code="count_only", sentence=sentence, mended=True))
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
            f"{folder} does not tell the shape of a row ({findings[-1].sentence}); its rows have "
            f"{', '.join(map(str, sorted(sizes)[:5]))} bytes of float16: give --row-shape {' or '.join(AXES.values())}"
        )
    if given and recorded and shape != recorded:
        raise ValueError(f"row_shape is {shape}; {folder} says {recorded}")
    if len(shape) not in AXES or min(shape) < 1:
        raise ValueError(f"{folder}: a row of shape {shape} is neither {' nor '.join(AXES.values())}")
    return shape


app = typer.Typer(add_completion=False, help="Released LMDBs: check, and make ours of them.")
Source = Annotated[Path, typer.Argument(metavar="SRC", help="folder with a released data.mdb")]
RowShape = Annotated[str | None, typer.Option(help="of one row, where SRC does not tell: F,C,H,W or T,F,C,H,W")]


@app.command("check")
def check_command(source: Source, row_shape: RowShape = None) -> None:
    """Say what SRC holds and what is wrong with it; exit 1 when an import cannot mend it."""
    try:
        found = survey(source, row_shape=_numbers(int, row_shape))
    except ValueError as error:
        sys.exit(str(error))
    print(f"{source}: {len(found.rows)} rows of {AXES[len(found.row_shape)]} = {found.row_shape}")
    for finding in found.findings:
        print(f"{'mended by import' if finding.mended else 'NOT MENDED'}: {finding.sentence}")
    if not all(finding.mended for finding in found.findings):
        sys.exit(1)


@app.command("import")
def import_command(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", help="folder to make")],
    row_shape: RowShape = None,
    timesteps: Annotated[
        str | None, typer.Option(help="of the states of ODE pairs; as released 1000,757,522,0")
    ] = None,
) -> None:
    """Make an LMDB that training stages read, with a sum for every record."""
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
        raise ValueError(f"{given!r} is not a list of numbers with commas between") from error


if __name__ == "__main__":
    app()
