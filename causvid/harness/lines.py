"""The lines that a stage prints when it has finished or was stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from causvid.compute.parallel import cores
from causvid.harness.progress import interrupted

BUSY = 1.5  # a machine is busy if its load is above this multiple of its cores: a stage itself uses all cores


def finished(label: str, headline: Sequence[str], results: Mapping[str, Any], seconds: float) -> str:
    """Return the line of a finished stage: its main numbers and its duration.

    Args:
        label: Name of the stage.
        headline: Format strings of the main numbers. A number that the stage has not reported is omitted.
        results: Metrics that the stage has reported.
        seconds: Duration of the stage.
    """
    return f"{label}: {', '.join([*_filled(headline, results), f'{lasting(seconds)}{busy()}'])}"


def stopped(label: str) -> str:
    """Return the line of a stage that was stopped by a signal: the finished work, and how to continue."""
    where, meter = "", interrupted()
    if meter and meter.kept:
        where = f" at step {meter.position()}; {meter.kept()}"
    elif meter:
        where = f" at {meter.position()} ({meter.what})"
    return f"{label}: stopped{where}; run the same command again to continue"


def lasting(seconds: float) -> str:
    """Return a measured duration, for example "1 min 12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def busy() -> str:
    """Return a warning if other processes use this machine; otherwise an empty string."""
    load, count = os.getloadavg()[0], cores()
    if load <= BUSY * count:
        return ""
    return f" (machine busy, load {load:.1f} on {count} cores: timings are not comparable)"


def _filled(headline: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    parts = []
    for part in headline:
        try:
            parts.append(part.format(**results))
        except (KeyError, TypeError):  # TypeError: the number is None
            continue
    return parts
