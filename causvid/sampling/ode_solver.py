"""Sample in many steps: solve the flow ODE of the teacher with the Euler method."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from causvid.diffusion.schedule import TRAIN_TIMESTEPS
from causvid.diffusion.velocity import Velocity


def solve_ode(
    velocity: Velocity, noise: torch.Tensor, sigmas: torch.Tensor, keep: Sequence[int] = (-1,)
) -> torch.Tensor:
    """Integrate dx/dsigma = velocity with the Euler method, and return the states ``keep``.

    Args:
        velocity: Velocity of the model.
        noise: Initial state [B, C, F, H, W].
        sigmas: Decreasing noise levels [n + 1] of the n + 1 states.
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
