"""Parameters that the params sections of all methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The entries that the params sections of all methods share.

    Attributes:
        steps: Number of training steps. With 0 steps, the initial weights are exported unchanged.
        batch_size: Number of samples in one step, over all workers.
        checkpoint_every: Number of steps between two checkpoints.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt
    checkpoint_every: PositiveInt


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Params entry ``optimizer``.

    Attributes:
        kind: Optimizer of the matrices; AdamW always updates the other parameters.
        learning_rate: Maximum learning rate.
        betas: Decay rates of the two moments in AdamW.
        weight_decay: Decoupled weight decay.
        grad_clip: Maximum norm of the gradient; a larger gradient is scaled to this norm.
        warmup_steps: Number of steps with a linear warm-up of the learning rate.
        decay: Learning rate schedule after the warm-up.
    """

    kind: Literal["muon", "adamw"]
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    warmup_steps: int
    decay: Literal["cosine", "constant"]
