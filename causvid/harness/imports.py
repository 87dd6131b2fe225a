"""Import the modules of the work: torch, diffusers and others, whose import takes seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Reduce garbage collection while the modules of the work are imported.

    These imports create a million objects that live until the process ends. At the usual threshold, the collector scans
    the objects again and again, which takes half a second.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
