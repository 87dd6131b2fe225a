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

    A bidirectional model has one time for all frames: given [B, F], it takes the first frame's. A causal one has a time
    per frame: given [B], all frames have the same.
    """
    is_causal = "frames_per_block" in model.config

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        dtype = model.dtype  # of the matrices; diffusers keeps some parameters in float32
        if is_causal:
            timestep = per_frame(timestep, x_t.shape[2])
        elif timestep.ndim == 2:
            timestep = timestep[:, 0]
        out = model(x_t.to(dtype), timestep=timestep.float(), encoder_hidden_states=text.to(dtype), return_dict=False)[
            0
        ]
        return out.to(x_t.dtype)  # type: ignore[no-any-return]

    return velocity


def guided(model: ModelMixin, text: torch.Tensor, negative: torch.Tensor, scale: float) -> Velocity:
    """The guided velocity, both halves in one batch. ``negative`` [1 or B, L, D]; scale 1 needs no second half."""
    if scale == 1:
        return conditional(model, text)
    return guide_halves(conditional(model, torch.cat([negative.expand_as(text), text])), scale)


def guide_halves(both: Velocity, scale: float) -> Velocity:
    """The guided velocity of B samples, from one of 2 B: without the prompt, then with it."""

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        uncond, cond = both(torch.cat([x_t, x_t]), torch.cat([timestep, timestep])).chunk(2)
        return guide(uncond, cond, scale)

    return velocity


def per_frame(timestep: torch.Tensor, frames: int) -> torch.Tensor:
    """``timestep`` [B] or [B, F] as [B, F]."""
    return timestep[:, None].expand(-1, frames) if timestep.ndim == 1 else timestep
