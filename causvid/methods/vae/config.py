"""Parameters of the training of the video autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeInt, PositiveInt

from causvid.training.config import OptimizerConfig, TrainingConfig
from causvid.training.pretrained import Init


@dataclass(frozen=True, kw_only=True)
class VaeConfig(TrainingConfig):
    """Params section ``train_vae``.

    Attributes:
        init: Source of the initial weights.
        image_steps: Number of first steps, which train on single frames.
        image_batch_size: Number of frames in such a step, over all workers.
        optimizer: Parameters of the optimizer.
        kl_weight: Weight of the KL divergence in the loss.
        held_out_clips: Number of clips that are not used in training, and that measure the reconstruction error.
    """

    init: Init
    image_steps: NonNegativeInt
    image_batch_size: PositiveInt
    optimizer: OptimizerConfig
    kl_weight: float
    held_out_clips: PositiveInt
