"""The many-step sampler of the teacher: the Euler method on the flow ODE."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from causvid.diffusion.flow import TRAIN_TIMESTEPS
from causvid.diffusion.velocity import Velocity


def solve_ode(
    velocity: Velocity, noise: torch.Tensor, sigmas: torch.Tensor, keep: Sequence[int] = (-1,)
) -> torch.Tensor:
    """Integrate dx/dsigma = velocity, and return some of the states.

    Args:
        velocity: Velocity of the model.
        noise: Initial state [B, C, F, H, W].
        sigmas: Decreasing noise levels of the states [n + 1].
        keep: Indices of the states to return; a negative index counts from the end.

    Returns:
        States [B, len(keep), C, F, H, W].
    """
    wanted = {index % len(sigmas) for index in keep}
    x, kept = noise, {0: noise} if 0 in wanted else {}
    for index, (sigma, after) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True), start=1):
        timestep = torch.full((len(x),), sigma * TRAIN_TIMESTEPS, device=x.device)
        x = x + velocity(x, timestep).to(x.dtype) * (after - sigma)
        if index in wanted:
            kept[index] = x
    return torch.stack([kept[index % len(sigmas)] for index in keep], dim=1)
