"""Print the progress of long work: as a bar on a terminal, or as a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0


def progress(items: Iterable[T], *, total: int, what: str, initial: int = 0) -> Iterator[T]:
    """Yield ``items``, and print their progress on stderr. ``initial`` items of ``total`` are already done."""
    with meter(total=total, what=what, initial=initial) as done:
        for item in items:
            yield item
            done.update(1)


@contextmanager
def meter(*, total: int, what: str, initial: int = 0, unit: str = "") -> Iterator[tqdm[None] | _Lines]:
    """Report progress on stderr.

    Args:
        total: Total number of units.
        what: Name of the work.
        initial: Number of units that are already done.
        unit: Unit of the numbers: "B" for bytes, or "".

    Yields:
        An object whose ``update(n)`` reports that n more units are done.
    """
    if sys.stderr.isatty():
        units = {"unit": unit, "unit_scale": True} if unit else {}
        with tqdm(total=total, initial=initial, desc=what, leave=False, **units) as bar:
            yield bar
    else:
        yield _Lines(total=total, what=what, initial=initial, unit=unit)


class _Lines:
    def __init__(self, *, total: int, what: str, initial: int, unit: str) -> None:
        self.total, self.what, self.initial, self.unit, self.done = total, what, initial, unit, initial
        self.started = self.last = time.monotonic()

    def update(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES and self.initial < self.done < self.total:
            rate = (self.done - self.initial) / (now - self.started)
            done, total = self._said(self.done), self._said(self.total)
            sys.stderr.write(f"{self.what}: {done}/{total}, {(self.total - self.done) / rate:.0f} s left\n")
            sys.stderr.flush()
            self.last = now

    def _said(self, count: int) -> str:
        return tqdm.format_sizeof(count, self.unit) if self.unit else str(count)
