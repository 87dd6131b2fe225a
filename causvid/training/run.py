"""Define the settings of one training, which the training loop, the previews and the methods read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from causvid.compute.parallel import Compute
from causvid.compute.precision import Precision
from causvid.harness.stage import StageRun
from causvid.harness.tracking import Tracker, Watch
from causvid.training.config import TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig)
Record = TypeVar("Record")  # StudentRecord, TeacherRecord or None


@dataclass(frozen=True, kw_only=True)
class Run(Generic[Config, Record]):
    """The settings of one training. All ranks receive a picklable copy.

    Attributes:
        config: Params section of the method.
        record: Training record of the resulting model; None for a VAE, which has no training record.
        seed: Seed of all random numbers.
        precision: Precision of the matrix products, in which the peak for MFU is defined.
        compute: Number of workers and GPUs, and methods to save memory.
        watch: Settings for previews, and for checkpoints to keep.
        tracker: Destination of metrics and artifacts.
        made_from: Checksums of everything that determines the result, keyed by name.
        work: Folder of the checkpoints and results. The trained model is in ``work/export``.
        inputs: Paths of the stage's inputs, keyed by the names of the command line options.
        network: Config of the network that is built if there are no initial weights.
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
    """Build the settings from the attributes of ``stage`` and from the other arguments, which ``Run`` describes."""
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
