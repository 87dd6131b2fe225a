"""Params of the stages ``evaluate`` and ``measure_latency``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt

from causvid.evaluation.vbench_dimensions import NEEDS_OWN_PROMPTS, WEIGHTS
from causvid.params import PathRule


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Params section ``evaluate``.

    Attributes:
        feature_vae: Folder of the VAE whose encoder computes the features of the Frechet distance.
        vbench_python: Python interpreter of VBench's environment.
        vbench_weights: Folder of the weights, which VBench calls its cache.
        vbench_dimensions: Dimensions to score.
    """

    feature_vae: Path
    # If the interpreter is missing, the scores of VBench are "not measured". The lock file defines the environment.
    vbench_python: Annotated[Path, PathRule(may_be_missing=True, counted_by=Path("requirements/vbench.txt"))]
    vbench_weights: Annotated[Path, PathRule(may_be_missing=True)]
    vbench_dimensions: tuple[str, ...]

    def __post_init__(self) -> None:
        known = {*WEIGHTS, *NEEDS_OWN_PROMPTS}
        for name in self.vbench_dimensions:
            if name not in known:
                raise ValueError(
                    f"evaluate.vbench_dimensions has {name!r}; the dimensions of VBench are {', '.join(sorted(known))}"
                )


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Params section ``measure_latency``.

    Attributes:
        warmup: Number of runs that are not timed.
        repeats: Number of timed runs, whose median is reported.
    """

    warmup: int
    repeats: PositiveInt
