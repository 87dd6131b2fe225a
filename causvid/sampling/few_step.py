"""The few-step sampler: predict x0, renoise to the next time, predict again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity


def few_step(
    velocity: Velocity, noise: torch.Tensor, timesteps: Sequence[float], draw: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """x0 [B, C, F, H, W] from ``noise`` along falling ``timesteps``; ``draw`` gives fresh noise between two of them."""
    x = noise
    for index, value in enumerate(timesteps):
        timestep = torch.full((x.shape[0], x.shape[2]), float(value), device=x.device)
        x0 = velocity_to_x0(x, velocity(x, timestep), sigma_of(timestep))
        if index + 1 < len(timesteps):
            x = add_noise(x0, draw(), sigma_of(torch.full_like(timestep, timesteps[index + 1])))
    return x0
