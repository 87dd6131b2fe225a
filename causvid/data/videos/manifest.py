"""Read and write manifest.jsonl, the index of a folder of files: one JSON object per line, sorted by id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from causvid.runtime import text

NAME = "manifest.jsonl"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines with sorted keys, in the given order.

    A character that cannot be encoded in UTF-8 is written as a JSON escape, so that the reason of a rejection can
    contain any file name.
    """
    lines = [text.escaped(json.dumps(dict(row), sort_keys=True, ensure_ascii=False)) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file. Raises ValueError if a line is not UTF-8 or not a JSON object."""
    rows: list[dict[str, Any]] = []
    if not path.stat().st_size:
        return rows
    for number, line in enumerate(text.decode(path.read_bytes(), str(path)).rstrip("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}); run the stage that writes the file again"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the manifest in ``folder``.

    Raises:
        ValueError: The manifest is missing, empty or damaged, or the text of a row cannot be encoded in UTF-8.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {NAME}; run the stage that writes it first")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} is empty; rejected.jsonl in the same folder, or the previous stage, has the reasons")
    for row in rows:
        text.require(json.dumps(row, ensure_ascii=False), f"{path}: the row {row.get('id')!r}")
    return rows


def split(rows: list[dict[str, Any]], held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the training rows and the last ``held_out`` rows. Raises ValueError if one of the lists would be empty."""
    if not 0 < held_out < len(rows):
        raise ValueError(
            f"train_vae.held_out_clips is {held_out} of {len(rows)} clips; it must be at least 1 and less than their "
            "number, because the other clips are for training"
        )
    return rows[:-held_out], rows[-held_out:]
