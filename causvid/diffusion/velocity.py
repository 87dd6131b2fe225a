"""What losses and samplers ask of a model: the velocity at a noisy video. Text and guidance are bound beforehand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import ModelMixin

from causvid.diffusion.guidance import guide

# (x_t [B, C, F, H, W], timestep [B] or [B, F]) -> velocity [B, C, F, H, W]
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def conditional(model: ModelMixin, text: torch.Tensor) -> Velocity:
    """The velocity of ``model`` given prompt embeddings ``text`` [B, L, D].

    A bidirectional model has one time for all frames: given [B, F], it takes the first frame's.
    """
    per_frame = "frames_per_block" in model.config  # a causal student

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        dtype = model.dtype  # of the matrices; diffusers keeps some parameters in float32
        timestep = timestep if per_frame or timestep.ndim == 1 else timestep[:, 0]
        out = model(x_t.to(dtype), timestep=timestep.float(), encoder_hidden_states=text.to(dtype), return_dict=False)[
            0
        ]
        return out.to(x_t.dtype)  # type: ignore[no-any-return]

    return velocity


def guided(model: ModelMixin, text: torch.Tensor, negative: torch.Tensor, scale: float) -> Velocity:
    """The guided velocity, both halves in one batch. ``negative`` [1 or B, L, D]; scale 1 needs no second half."""
    if scale == 1:
        return conditional(model, text)
    both = conditional(model, torch.cat([negative.expand_as(text), text]))

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        uncond, cond = both(torch.cat([x_t, x_t]), torch.cat([timestep, timestep])).chunk(2)
        return guide(uncond, cond, scale)

    return velocity
