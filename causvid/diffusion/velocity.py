"""Convert a model, a prompt and a guidance scale to a velocity function for losses and samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin

from causvid.diffusion.guidance import guide

# Maps (x_t [B, C, F, H, W], timestep [B] or [B, F]) to the velocity [B, C, F, H, W].
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def conditional(model: ModelMixin, text: torch.Tensor, **cached: Any) -> Velocity:
    """Return the velocity function of a model for given prompts. Only this function calls a transformer.

    Args:
        model: A transformer. A bidirectional transformer has one timestep for all frames; from [B, F], it uses the
            timestep of the first frame. A causal transformer has one timestep per frame; it repeats [B] for all frames.
        text: Prompt embeddings [B, L, D].
        cached: Arguments ``kv_cache`` and ``start_frame`` of a causal transformer for a single block. The block is
            written into the cache.

    Returns:
        The velocity as a function of x_t and the timestep. The model computes in the dtype of its matrices, and the
        velocity has the dtype of x_t.
    """
    is_causal = "frames_per_block" in model.config
    dtype = model.dtype  # ignores the parameters that diffusers always keeps in float32

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if is_causal:
            timestep = _per_frame(timestep, x_t.shape[2])
        elif timestep.ndim == 2:
            timestep = timestep[:, 0]
        inputs = {"timestep": timestep.float(), "encoder_hidden_states": text.to(dtype), "return_dict": False}
        (out,) = model(x_t.to(dtype), **inputs, **cached)
        return out.to(x_t.dtype)  # type: ignore[no-any-return]

    return velocity


def guided(model: ModelMixin, text: torch.Tensor, negative: torch.Tensor, scale: float) -> Velocity:
    """Return the velocity function with classifier-free guidance. One batch contains both kinds of prompts.

    Args:
        model: A transformer.
        text: Prompt embeddings [B, L, D].
        negative: Embeddings of the negative prompt [1 or B, L, D].
        scale: Guidance scale w in uncond + w (cond - uncond). With w = 1, the model is called without the negative
            prompt.
    """
    if scale == 1:
        return conditional(model, text)
    return guide_halves(conditional(model, torch.cat([negative.expand_as(text), text])), scale)


def guide_halves(both: Velocity, scale: float) -> Velocity:
    """Return the guided velocity of B samples from a velocity of 2 B samples, unconditional samples first."""

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        uncond, cond = both(torch.cat([x_t, x_t]), torch.cat([timestep, timestep])).chunk(2)
        return guide(uncond, cond, scale)

    return velocity


def _per_frame(timestep: torch.Tensor, frames: int) -> torch.Tensor:
    """Expand ``timestep`` from [B] or [B, F] to [B, F]."""
    return timestep[:, None].expand(-1, frames) if timestep.ndim == 1 else timestep
