"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0


def progress(items: Iterable[T], *, total: int, what: str, initial: int = 0) -> Iterator[T]:
    """Yield ``items`` and say on stderr how many of ``total`` are done; ``initial`` were done before."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, initial=initial, desc=what, leave=False)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, start=initial + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            rate = (done - initial) / (now - started)
            sys.stderr.write(f"{what}: {done}/{total}, {(total - done) / rate:.0f} s left\n")
            sys.stderr.flush()
            last = now
