"""Select the eight headline numbers of a run: six scores of the student, and two speeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.reporting.tables import MODELS, Results, lookup, read_results

STUDENT = f"evaluate/{MODELS[-1]}"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A headline number.

    Attributes:
        name: Key of the number in ``reports/summary.json`` and in MLflow.
        label: Name of the number for readers, with its unit.
        stage: Name of the metrics that contain the number, as in ``tables.read_results``.
        path: Keys of the number in these metrics.
        interval: Keys of the 95 % confidence interval in these metrics; empty if the number has no interval.
        decimals: Number of decimals in texts.
        higher_is_better: Whether a higher number is better.
    """

    name: str
    label: str
    stage: str
    path: tuple[str, ...]
    interval: tuple[str, ...] = ()
    decimals: int
    higher_is_better: bool = True


SCORES = (
    *(
        Headline(
            name=name,
            label=name,
            stage=STUDENT,
            path=("judge", name),
            interval=("intervals", name),
            decimals=3,
        )
        for name in ("velocity", "motion")
    ),
    Headline(
        name="frechet",
        label="Fréchet distance",
        stage=STUDENT,
        path=("frechet_distance",),
        interval=("frechet_interval",),
        decimals=2,
        higher_is_better=False,
    ),
    *(
        Headline(name=name, label=name, stage=STUDENT, path=("table4", name), interval=("intervals", name), decimals=1)
        for name in ("temporal", "frame", "text")
    ),
)
SPEEDS = (
    Headline(
        name="first_frame_s",
        label="first frame, s",
        stage="measure_latency",
        path=("student", "first_frame_s"),
        decimals=3,
        higher_is_better=False,
    ),
    Headline(name="fps", label="frames per second", stage="measure_latency", path=("student", "fps"), decimals=1),
)
HEADLINES = (*SCORES, *SPEEDS)


def values(results: Results, headlines: tuple[Headline, ...] = HEADLINES) -> dict[str, float]:
    """Return the headline numbers that were measured, keyed by name.

    Args:
        results: Metrics of the stages, from ``tables.read_results``.
        headlines: The numbers to select.
    """
    found: Mapping[str, Any] = {each.name: lookup(results.get(each.stage), *each.path) for each in headlines}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def rounded(results: Results, headlines: tuple[Headline, ...] = HEADLINES) -> dict[str, float]:
    """Return the result of ``values`` with the decimals that are shown to readers."""
    measured = values(results, headlines)
    return {each.name: round(measured[each.name], each.decimals) for each in headlines if each.name in measured}


def main(reports: Path) -> None:
    """Print the headline numbers of the metrics in ``reports`` for Prefect: a JSON list of names and values."""
    measured = rounded(read_results(reports))
    labels = {each.name: each.label for each in HEADLINES}
    print(json.dumps([{"measure": labels[name], "value": value} for name, value in measured.items()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
