"""Parameters of the training of the teacher."""

from __future__ import annotations

from dataclasses import dataclass

from causvid.training.config import OptimizerConfig, TrainingConfig
from causvid.training.pretrained import Init


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """Params sections ``train_teacher`` and ``train_causal_teacher``.

    Attributes:
        init: Source of the initial weights. Without a source, the teacher starts from random weights, and the causal
            teacher starts from the weights of the teacher.
        optimizer: Parameters of the optimizer.
        prompt_dropout: Share of the samples whose prompt is replaced by the negative prompt. Guidance needs this.
        ema_decay: Decay of the weight average.
    """

    init: Init
    optimizer: OptimizerConfig
    prompt_dropout: float
    ema_decay: float
