"""Dataclasses for the YAML configs of the original CausVid code, with keys, types and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The flag of a model that is trained."""

    model: Literal[True]


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The flag of a model that is not trained."""

    model: Literal[False]


@dataclass(frozen=True, kw_only=True)
class Released:
    """Keys that ODE regression and DMD read in the original code. The defaults are the defaults of the original code.

    Attributes:
        denoising_step_list: Timesteps; if warp_denoising_step is true, positions in an unshifted grid of 1000.
        batch_size: Number of samples per GPU.
        log_iters: Number of steps between checkpoints.
    """

    distillation_loss: Literal["dmd", "ode"]
    model_name: Literal["wan", "causal_wan"]
    generator_task: Literal["bidirectional_video", "causal_video"]
    denoising_step_list: list[int]
    data_path: str
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    log_iters: PositiveInt
    seed: int
    mixed_precision: bool
    gradient_checkpointing: bool
    generator_grad: Trained
    generator_ckpt: str | None = None
    num_frame_per_block: PositiveInt = 1
    warp_denoising_step: bool = False

    @property
    def causal(self) -> bool:
        """Whether the student is causal."""
        return self.generator_task == "causal_video"


@dataclass(frozen=True, kw_only=True)
class ReleasedDmd(Released):
    """Keys that DMD reads in the original code.

    Attributes:
        image_or_video_shape: Shape of the latents [B, F, C, H, W]; B is the batch size.
    """

    generator_name: Literal["wan", "causal_wan"] | None = None
    real_score_grad: Frozen
    fake_score_grad: Trained
    real_task_type: Literal["bidirectional_video"]
    fake_task_type: Literal["bidirectional_video"]
    num_train_timestep: Literal[1000]
    timestep_shift: Annotated[float, Field(ge=1)] | None = None
    real_guidance_scale: float
    denoising_loss_type: Literal["flow"]
    backward_simulation: bool = True
    negative_prompt: str
    dfake_gen_update_ratio: PositiveInt
    image_or_video_shape: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]


TRAININGS: dict[str, type[Released]] = {"ode": Released, "dmd": ReleasedDmd}
