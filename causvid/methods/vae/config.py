"""Params of the training of the video autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeInt, PositiveInt

from causvid.training.optimizers import OptimizerConfig
from causvid.training.pretrained import Init
from causvid.training.run import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class VaeConfig(TrainingConfig):
    """Params section ``train_vae``.

    Attributes:
        init: Initial weights.
        image_steps: The first steps, which train on single frames.
        image_batch_size: Samples of such a step over all workers.
        optimizer: Params of the optimizer.
        kl_weight: Weight of the KL divergence in the loss.
        held_out_clips: Clips that are not trained on; the reconstructions are measured on them.
    """

    init: Init
    image_steps: NonNegativeInt
    image_batch_size: PositiveInt
    optimizer: OptimizerConfig
    kl_weight: float
    held_out_clips: PositiveInt
