"""passed_over.jsonl: the videos and captions that the stage download did not take from a source, and the reasons."""

from __future__ import annotations

import sys
from pathlib import Path

from causvid.data.videos import manifest
from causvid.runtime import text

PASSED_OVER = "passed_over.jsonl"
SAID = 5  # number of rows that are also printed on stderr


class PassedOver:
    """Rows {source, code, reason} of passed_over.jsonl. The first ``SAID`` rows are printed on stderr immediately."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, source: str, code: str, reason: str) -> None:
        """Add a row. Characters of ``source`` and ``reason`` that cannot be encoded in UTF-8 are escaped.

        Args:
            source: Path of the video or caption.
            code: A short, stable identifier of the kind of fault.
            reason: A clause that explains the fault.
        """
        if len(self.rows) < SAID:
            sys.stderr.write(f"passed over {source!r}: {text.escaped(reason)}\n")
        self.rows.append({"source": text.escaped(source), "code": code, "reason": text.escaped(reason)})

    def write(self, folder: Path) -> None:
        """Write the rows into ``folder``."""
        if len(self.rows) > SAID:
            sys.stderr.write(f"and {len(self.rows) - SAID} more were passed over: see {PASSED_OVER}\n")
        manifest.write_rows(folder / PASSED_OVER, self.rows)
