"""Parameters of the ODE initialisation."""

from __future__ import annotations

from dataclasses import dataclass

from causvid.training.config import OptimizerConfig, TrainingConfig
from causvid.training.pretrained import Init


@dataclass(frozen=True, kw_only=True)
class OdeConfig(TrainingConfig):
    """Params section ``train_ode_init``.

    Attributes:
        init: Source of the initial student. Without a source, the student starts from the causal teacher.
        optimizer: Parameters of the optimizer.
        ema_decay: Decay of the weight average.
    """

    init: Init
    optimizer: OptimizerConfig
    ema_decay: float
