"""manifest.jsonl: one JSON object a line, sorted by id, beside the files it lists. The one index every stage reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from causvid.runtime import text

NAME = "manifest.jsonl"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` as JSON lines with sorted keys; the caller orders them.

    A character that UTF-8 cannot hold is written as its JSON escape, so that no row is lost for the text of a reason.
    """
    lines = [text.escaped(json.dumps(dict(row), sort_keys=True, ensure_ascii=False)) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. Raises ValueError naming the line that is not UTF-8 or not a JSON object."""
    rows: list[dict[str, Any]] = []
    if not path.stat().st_size:
        return rows
    for number, line in enumerate(text.decode(path.read_bytes(), str(path)).rstrip("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}); make the file again with its stage"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``folder``'s manifest.

    Raises:
        ValueError: When there is no manifest, when it is empty, and when a row holds what UTF-8 cannot hold.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {NAME}; run the stage that makes it first")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} lists nothing; see rejected.jsonl beside it, or the stage before, for why")
    for row in rows:
        text.require(json.dumps(row, ensure_ascii=False), f"{path}: the row {row.get('id')!r}")
    return rows


def split(rows: list[dict[str, Any]], held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and the last ``held_out`` ones. Raises ValueError when nothing would be left to train on."""
    if not 0 < held_out < len(rows):
        raise ValueError(
            f"train_vae.held_out_clips is {held_out} of {len(rows)} clips; it must be at least 1 and leave some"
        )
    return rows[:-held_out], rows[-held_out:]
