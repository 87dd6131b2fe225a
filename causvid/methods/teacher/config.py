"""Parameters of the training of the teacher."""

from __future__ import annotations

from dataclasses import dataclass

from causvid.training.optimizers import OptimizerConfig
from causvid.training.pretrained import Init
from causvid.training.run import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """Params section ``train_teacher``.

    Attributes:
        init: Source of the initial weights. A causal teacher can start from a bidirectional or a causal model.
        causal: Whether the teacher is block-causal and is trained with a timestep for each block (diffusion forcing).
        optimizer: Parameters of the optimizer.
        prompt_dropout: Share of the samples whose prompt is replaced by the negative prompt. Guidance needs this.
        ema_decay: Decay of the weight average.
    """

    init: Init
    causal: bool
    optimizer: OptimizerConfig
    prompt_dropout: float
    ema_decay: float
