"""Parameters of distribution matching distillation (DMD)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import NonNegativeInt, PositiveInt

from causvid.diffusion.schedule import TRAIN_TIMESTEPS
from causvid.methods.dmd.turns import Turns
from causvid.training.config import OptimizerConfig, TrainingConfig


class Inputs(StrEnum):
    """Input of the student in training.

    DATA means real clips with added noise. ROLLOUT and TRUNCATED_ROLLOUT mean states of the student's sampler, which
    starts from noise. In a ROLLOUT of a causal student, the gradient of a block flows through the KV cache to the
    earlier blocks. In a TRUNCATED_ROLLOUT, it stops at the cache (Self-Forcing, arXiv 2506.08009).
    """

    DATA = "data"
    ROLLOUT = "rollout"
    TRUNCATED_ROLLOUT = "truncated_rollout"


@dataclass(frozen=True, kw_only=True)
class DmdConfig(TrainingConfig):
    """Params section ``train_dmd``. ``steps`` is the number of critic updates.

    Attributes:
        critic_updates_per_student_update: Number of critic updates per student update.
        share_samples: Whether a student update and the critic updates before it use the same batch of the student's
            samples (with new score timesteps and noise in each update). Otherwise every update generates a new batch.
        critic_only_steps: Number of critic updates before the first student update.
        guidance_scale: Guidance scale w of the teacher's score: uncond + w (cond - uncond).
        student_optimizer: Parameters of the student's optimizer.
        critic_optimizer: Parameters of the critic's optimizer.
        critic_lora_rank: Rank of the LoRA adapter, if the critic is the teacher with an adapter. None = the critic has
            separate weights, which are all trained.
        inputs: Input of the student.
        clean_frames_in_loss: Whether the means of the loss include the frames whose input had no noise.
        image_share: Share of the steps whose batch contains only the first frame of each clip, as an image.
        score_shift: Shift of the random score timesteps, at which the scores of teacher and critic are compared.
        score_timesteps: Smallest and largest score timestep.
        ema_decay: Decay of the student's weight average.
    """

    critic_updates_per_student_update: PositiveInt
    share_samples: bool
    critic_only_steps: NonNegativeInt
    guidance_scale: float
    student_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    critic_lora_rank: int | None
    inputs: Inputs
    clean_frames_in_loss: bool
    image_share: float
    score_shift: float
    score_timesteps: tuple[float, float]
    ema_decay: float

    def __post_init__(self) -> None:
        rank, (low, high) = self.critic_lora_rank, self.score_timesteps
        if rank is not None and rank < 1:
            raise ValueError(
                f"train_dmd.critic_lora_rank is {rank}; it must be at least 1, or null for a separate critic"
            )
        if not 0 < low <= high <= TRAIN_TIMESTEPS:
            raise ValueError(
                f"train_dmd.score_timesteps is [{low:g}, {high:g}]; give the smallest and the largest timestep, above "
                f"0 (clean samples have no score) and up to {TRAIN_TIMESTEPS}"
            )
        if not 0 <= self.image_share <= 1:
            raise ValueError(f"train_dmd.image_share is {self.image_share:g}; it is a share, between 0 and 1")

    @property
    def turns(self) -> Turns:
        """Order of the critic and student updates."""
        return Turns(
            ratio=self.critic_updates_per_student_update, critic_only=self.critic_only_steps, shared=self.share_samples
        )
