"""Print the progress of long work: as a bar on a terminal, or as a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0

_open: list[Meter] = []  # the meters of this process, outermost first
_interrupted: list[Meter] = []  # the meters whose work an exception has ended, innermost first


class Meter:
    """Progress of one piece of work: a bar on a terminal, otherwise lines.

    Attributes:
        what: Name of the work.
        total: Total number of units.
        done: Number of finished units.
        kept: A function that returns a clause about the work that a repeated command does not do again; None = unknown.
    """

    def __init__(self, *, total: int, what: str, initial: int, unit: str) -> None:
        self.total, self.what, self.initial, self.unit, self.done = total, what, initial, unit, initial
        self.kept: Callable[[], str] | None = None
        self.values = ""
        self.started = self.last = time.monotonic()
        self.bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            units = {"unit": unit, "unit_scale": True} if unit else {}
            self.bar = tqdm(total=total, initial=initial, desc=what, leave=False, **units)

    def update(self, count: int) -> None:
        """Report that ``count`` more units are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES and self.initial < self.done < self.total:
            rate = (self.done - self.initial) / (now - self.started)
            left = f"{(self.total - self.done) / rate:.0f} s left"
            print(f"{self.what}: {self.position('/')}, {left}{self.values}", file=sys.stderr, flush=True)
            self.last = now

    def show(self, values: Mapping[str, float]) -> None:
        """Print ``values`` beside the progress, for example a loss."""
        shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        self.values = f", {shown}" if shown else ""
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)

    def position(self, of: str = " of ") -> str:
        """Return the numbers of finished units and of all units."""
        return of.join(
            tqdm.format_sizeof(count, self.unit) if self.unit else str(count) for count in (self.done, self.total)
        )


def progress(
    items: Iterable[T], *, total: int, what: str, initial: int = 0, kept: Callable[[], str] | None = None
) -> Iterator[T]:
    """Yield ``items``, and print their progress on stderr. ``initial`` items of ``total`` are already done.

    ``kept`` returns a clause about the work that a repeated command does not do again.
    """
    with meter(total=total, what=what, initial=initial) as done:
        done.kept = kept
        for item in items:
            yield item
            done.update(1)


def show(values: Mapping[str, float]) -> None:
    """Print ``values`` beside the progress of the current work of this process, for example a loss."""
    if _open:
        _open[-1].show(values)


@contextmanager
def meter(*, total: int, what: str, initial: int = 0, unit: str = "") -> Iterator[Meter]:
    """Report progress on stderr.

    Args:
        total: Total number of units.
        what: Name of the work.
        initial: Number of units that are already done.
        unit: Unit of the numbers: "B" for bytes, or "".

    Yields:
        The meter, whose ``update(n)`` reports that n more units are done.
    """
    done = Meter(total=total, what=what, initial=initial, unit=unit)
    _interrupted.clear()
    _open.append(done)
    try:
        yield done
    except BaseException:
        _interrupted.append(done)
        raise
    finally:
        _open[:] = [each for each in _open if each is not done]  # a test may have forgotten the meter
        if done.bar is not None:
            done.bar.close()


def interrupted() -> Meter | None:
    """Return the meter of the outermost work that an exception has ended; None if there is none.

    The meter of a ``progress`` in a variable is still open, because the exception does not reach the generator.
    """
    return next(iter([*_open, *reversed(_interrupted)]), None)
