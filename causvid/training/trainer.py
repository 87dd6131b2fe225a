"""The one training loop: resume, step, log, checkpoint, export. What is learned, and how, is the step object's."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from causvid.runtime.distributed import is_main, mean
from causvid.runtime.parallel import Compute
from causvid.runtime.progress import progress
from causvid.runtime.tracking import Tracker, Watch
from causvid.training import checkpoint
from causvid.training.speed import Speed, Work

LOG_POINTS = 100  # rows of a curve, whatever the number of steps
CURVE = "curve.csv"
EXPORT = "export"


class Step(Protocol):
    """One way to train: what it keeps between steps, and what one step does."""

    def parts(self) -> Mapping[str, checkpoint.Stateful]:
        """Everything that changes during training, by name."""
        ...

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Do training step ``step`` (a function of the state and of this number) and return scalars to log.

        One with a slash in its name is for MLflow alone, which makes a group of charts of what stands before it.
        """
        ...

    def work(self, step: int) -> Work:
        """What training step ``step`` handles over all workers."""
        ...

    def export(self, folder: Path) -> None:
        """Save what was learned as a diffusers model; every rank asks, rank 0 writes."""
        ...


class Job(Protocol):
    """What the loop has to know of a training job; ``config`` is its params section."""

    @property
    def config(self) -> Lengths:
        """Its params section."""
        ...

    @property
    def precision(self) -> str:
        """Of the matrix products; MFU refers to the peak in it."""
        ...

    @property
    def work(self) -> Path:
        """Folder of its checkpoints and results."""
        ...

    @property
    def tracker(self) -> Tracker:
        """Where it says what it does."""
        ...

    @property
    def compute(self) -> Compute:
        """How much of the machine it uses."""
        ...

    @property
    def watch(self) -> Watch:
        """What it leaves to look at."""
        ...

    @property
    def made_from(self) -> Mapping[str, str]:
        """A sum by the name of everything that decides its result."""
        ...


class Lengths(Protocol):
    """Of every params section of a training."""

    @property
    def steps(self) -> int:
        """Training steps in all."""
        ...

    @property
    def checkpoint_every(self) -> int:
        """Steps from one checkpoint to the next."""
        ...


def train(step: Step, job: Job, previews: Callable[[int], None] | None = None) -> None:
    """Run ``step`` until ``job.config.steps``, from the newest checkpoint in ``job.work`` if there is one.

    ``previews`` is called with the number of steps done, as often as ``job.watch`` says and at the end.
    Rank 0 leaves ``job.work``/curve.csv and ``job.work``/export.

    Raises FloatingPointError at a non-finite value in a row of the curve (a step refuses non-finite gradients itself),
    ValueError when the checkpoints there were made from something else.
    """
    steps, work = job.config.steps, job.work
    checkpoints = work / "checkpoints"
    start, history = checkpoint.resume(checkpoints, step.parts(), job.made_from)
    writer = checkpoint.Writer(
        checkpoints,
        job.made_from,
        keep_every=job.watch.keep_checkpoints_every,
        in_background=job.compute.save_in_background,
    )
    log_every = max(1, steps // LOG_POINTS)
    latest: dict[str, torch.Tensor] = {}
    speed, remaining = Speed(job.precision), range(start, steps)
    for index in progress(remaining, total=steps, what=work.parent.name, initial=start) if is_main() else remaining:
        latest |= step(index)
        speed.add(step.work(index))
        if index % log_every == 0 or index + 1 == steps:
            row, latest = mean(latest), {}  # what is not made in every step is shown in the next row
            for name, value in row.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"step {index}: {name} is {value}")
            history.append({"step": index, **{name: value for name, value in row.items() if "/" not in name}})
            if is_main():
                job.tracker.log_metrics({**row, **speed.read()}, index)
        if _is_due(index + 1, job.config.checkpoint_every, steps):
            writer.save(index + 1, step.parts(), history)
            latest = {}  # a resumed run could not know it, and must write the same curve
        if previews and _is_due(index + 1, job.watch.samples_every, steps):
            previews(index + 1)
    writer.wait()
    if is_main():
        write_curve(work / CURVE, history)
        shutil.rmtree(work / EXPORT, ignore_errors=True)  # a kill may have left a file that was being written
    step.export(work / EXPORT)


def _is_due(done: int, every: int, steps: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after ``done``; never for 0."""
    return every > 0 and (done % every == 0 or done == steps)


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
