"""Run the training loop: resume, step, log, save, export. A step object of a method defines the training step."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from causvid.compute.parallel import launch
from causvid.harness.progress import progress, show
from causvid.harness.stage import StageRun
from causvid.speed import Counts, Speed
from causvid.training import checkpoint
from causvid.training.distributed import is_main, mean, world_size
from causvid.training.run import Config, Record, Run

LOG_POINTS = 100  # number of rows in a curve, for any number of steps
CURVE = "curve.csv"
EXPORT = "export"


class Step(Protocol):
    """The protocol of a training method: its training step, and the state that is kept between steps."""

    def state(self) -> Mapping[str, checkpoint.Stateful]:
        """Return all objects that change during training, keyed by name."""
        ...

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Do one training step.

        Args:
            step: Number of the step. The result depends only on this number and on the state.

        Returns:
            Scalars to log. Names with a slash are logged to MLflow only; MLflow groups charts by the part before the
            slash.
        """
        ...

    def counts(self, step: int) -> Counts:
        """Return the samples, tokens and FLOPs of training step ``step`` over all workers."""
        ...

    def export(self, folder: Path) -> None:
        """Save the trained model in diffusers' format. All ranks call this method; only rank 0 writes."""
        ...


def train(step: Step, run: Run[Any, Any], previews: Callable[[int], None] | None = None) -> None:
    """Train until ``run.config.steps``. The training resumes from the newest valid checkpoint in ``run.work``.

    Rank 0 writes ``run.work``/curve.csv and ``run.work``/export.

    Args:
        step: Training step of the method.
        run: Settings of this training.
        previews: Function that writes previews, given the number of finished steps. It is called every
            ``run.watch.samples_every`` steps and after the last step.

    Raises:
        FloatingPointError: A value in a row of the curve is not finite, or ``step`` raised this error.
        ValueError: The checkpoints in ``run.work`` are from a training with other inputs.
    """
    steps, work = run.config.steps, run.work
    checkpoints = work / "checkpoints"
    start, history = checkpoint.resume(checkpoints, step.state(), run.made_from)
    writer = checkpoint.Writer(
        checkpoints,
        run.made_from,
        keep_every=run.watch.keep_checkpoints_every,
        in_background=run.compute.save_in_background,
    )
    log_every = max(1, steps // LOG_POINTS)
    latest: dict[str, torch.Tensor] = {}
    speed, steps_left = Speed(run.precision, world_size()), iter(range(start, steps))
    if is_main():
        kept = partial(checkpoint.kept, checkpoints)
        steps_left = progress(steps_left, total=steps, what=work.parent.name, initial=start, kept=kept)
    for index in steps_left:
        latest |= step(index)
        speed.add(step.counts(index))

        # Log a row of the curve.
        if index % log_every == 0 or index + 1 == steps:
            row, latest = mean(latest), {}  # the next row shows values that only some steps have
            for name, value in row.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"step {index}: {name} is {value}")
            history.append({"step": index, **{name: value for name, value in row.items() if "/" not in name}})
            if is_main():
                run.tracker.log_metrics({**row, **speed.read()}, index)
                show({name: value for name, value in row.items() if name.endswith("loss")})

        # Save a checkpoint, and write previews.
        if _is_due(index + 1, run.config.checkpoint_every, steps):
            writer.save(index + 1, step.state(), history)
            latest = {}  # a resumed run does not have these values, but must write an identical curve
        if previews and _is_due(index + 1, run.watch.samples_every, steps):
            previews(index + 1)

    # Export the result.
    writer.wait()
    if is_main():
        write_curve(work / CURVE, history)
        shutil.rmtree(work / EXPORT, ignore_errors=True)  # an interrupted run may have written a part of it
    step.export(work / EXPORT)


def carry_out(method: Callable[[Run[Config, Record]], None], run: Run[Config, Record], stage: StageRun) -> None:
    """Call ``method(run)`` on every worker. The call writes the curve and the exported model to the work folder."""
    launch(method, run, run.compute, name=stage.origin.key, storage=run.work / "ray")


def publish(run: Run[Any, Any], stage: StageRun, *, out: Path, curve: Path) -> None:
    """Report the last values of the curve, and move the exported model and the curve to their final paths.

    Args:
        run: A finished run.
        stage: The stage of this run.
        out: Destination of the model.
        curve: Destination of the curve.
    """
    stage.report({**read_last(run.work / CURVE), "steps": run.config.steps})
    stage.publish(run.work / EXPORT, out)
    stage.publish(run.work / CURVE, curve)


def _is_due(done: int, every: int, steps: int) -> bool:
    """Return whether ``done`` is a multiple of ``every`` or equals ``steps``; False if ``every`` is 0."""
    return every > 0 and (done % every == 0 or done == steps)


def write_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Write the logged rows as CSV. The first column is the step; other columns are in alphabetical order."""
    names = ["step", *sorted({name for row in history for name in row} - {"step"})]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def read_last(path: Path) -> dict[str, float]:
    """Return the last value in every column of a curve."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: float(value) for row in rows for name, value in row.items() if value and name != "step"}
