"""The one training loop: resume, step, log, checkpoint, export. What is learned, and how, is the step object's."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from causvid.runtime.distributed import is_main, mean
from causvid.runtime.progress import progress
from causvid.runtime.tracking import Tracker
from causvid.training import checkpoint

LOG_POINTS = 100  # rows of a curve, whatever the number of steps
CURVE = "curve.csv"
EXPORT = "export"


class Step(Protocol):
    """One way to train: what it keeps between steps, and what one step does."""

    def parts(self) -> Mapping[str, checkpoint.Stateful]:
        """Everything that changes during training, by name."""
        ...

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Do training step ``step`` (a function of the state and of this number) and return scalars to log."""
        ...

    def export(self, folder: Path) -> None:
        """Save what was learned as a diffusers model; every rank asks, rank 0 writes."""
        ...


def train(step: Step, *, steps: int, checkpoint_every: int, work: Path, tracker: Tracker) -> None:
    """Run ``step`` until ``steps``, from the newest checkpoint in ``work`` if there is one.

    Rank 0 leaves ``work``/curve.csv and ``work``/export.

    Raises FloatingPointError at a non-finite value in a row of the curve (a step refuses non-finite gradients itself).
    """
    checkpoints = work / "checkpoints"
    start, history = checkpoint.resume(checkpoints, step.parts())
    log_every = max(1, steps // LOG_POINTS)
    latest: dict[str, torch.Tensor] = {}
    remaining = range(start, steps)
    for index in progress(remaining, total=steps, what=work.parent.name, initial=start) if is_main() else remaining:
        latest |= step(index)
        if index % log_every == 0 or index + 1 == steps:
            row, latest = mean(latest), {}  # what is not made in every step is shown in the next row
            for name, value in row.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"step {index}: {name} is {value}")
            history.append({"step": index, **row})
            if is_main():
                tracker.log_metrics(row, index)
        if (index + 1) % checkpoint_every == 0 or index + 1 == steps:
            checkpoint.save(checkpoints, index + 1, step.parts(), history)
            latest = {}  # a resumed run could not know it, and must write the same curve
    if is_main():
        write_curve(work / CURVE, history)
    step.export(work / EXPORT)


def write_curve(path: Path, history: list[dict[str, float]]) -> None:
    """The logged rows as CSV: step first, then the names in alphabetical order; absent = empty."""
    names = ["step", *sorted({name for row in history for name in row} - {"step"})]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def read_last(path: Path) -> dict[str, float]:
    """The last value of every column of a curve."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: float(value) for row in rows for name, value in row.items() if value and name != "step"}
