"""passed_over.jsonl: the videos and captions of a source that the stage download did not take, each with its reason."""

from __future__ import annotations

import sys
from pathlib import Path

from causvid import text
from causvid.data import manifest

PASSED_OVER = "passed_over.jsonl"
SAID = 5  # rows that appear on stderr as well


class PassedOver:
    """Rows {source, code, reason}. The first few appear on stderr as they come, so that nobody waits for the end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, source: str, code: str, reason: str) -> None:
        """Pass over ``source``. code: a short stable word; reason: a clause. Both texts are escaped where they must."""
        if len(self.rows) < SAID:
            sys.stderr.write(f"passed over {source!r}: {text.escaped(reason)}\n")
        self.rows.append({"source": text.escaped(source), "code": code, "reason": text.escaped(reason)})

    def write(self, folder: Path) -> None:
        """Write the rows into ``folder``."""
        if len(self.rows) > SAID:
            sys.stderr.write(f"and {len(self.rows) - SAID} more were passed over: see {PASSED_OVER}\n")
        manifest.write_rows(folder / PASSED_OVER, self.rows)
