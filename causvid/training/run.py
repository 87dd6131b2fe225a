"""The record of one training: everything that the training loop, the previews and a method need to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from causvid.compute.device import Precision
from causvid.compute.parallel import Compute
from causvid.harness.stage import StageRun
from causvid.harness.tracking import Tracker, Watch

Config = TypeVar("Config", bound="TrainingConfig")
Record = TypeVar("Record")  # StudentRecord, TeacherRecord or None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Entries of the params section of every method.

    Attributes:
        steps: Training steps. With 0 steps the initial weights are exported unchanged.
        batch_size: Samples of one step over all workers.
        checkpoint_every: Steps from one checkpoint to the next.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt
    checkpoint_every: PositiveInt


@dataclass(frozen=True, kw_only=True)
class Run(Generic[Config, Record]):
    """One training of one method. All ranks receive the same picklable copy.

    Attributes:
        config: Params section of the method.
        record: Training record of the resulting model; None for a VAE, which has none.
        seed: Seed of all random numbers.
        precision: Precision of the matrix products. MFU refers to the peak in this precision.
        compute: Workers, GPUs and memory savings.
        watch: Previews and checkpoints to keep.
        tracker: Destination of metrics and artifacts.
        made_from: Checksums, by name, of everything that decides the result.
        work: Folder of the checkpoints and results. The trained model is in ``work/export``.
        inputs: Paths of the stage's inputs, by the names of its options.
        network: Configuration of the network that is built if no initial weights are given.
    """

    config: Config
    record: Record
    seed: int
    precision: Precision
    compute: Compute
    watch: Watch
    tracker: Tracker
    made_from: Mapping[str, str]
    work: Path
    inputs: Mapping[str, Path]
    network: Mapping[str, Any] = field(default_factory=dict)


def new_run(
    stage: StageRun,
    config: Config,
    record: Record,
    *,
    seed: int,
    precision: Precision,
    inputs: Mapping[str, Path],
    network: Mapping[str, Any] | None = None,
) -> Run[Config, Record]:
    """Return the run of a stage; the arguments are those of ``Run``, and the rest comes from ``stage``."""
    return Run(
        config=config,
        record=record,
        seed=seed,
        precision=precision,
        compute=stage.compute,
        watch=stage.watch,
        tracker=stage.tracker,
        made_from=stage.origin.parts(),
        work=stage.work.resolve(),
        inputs={name: path.absolute() for name, path in inputs.items()},
        network=network or {},
    )
