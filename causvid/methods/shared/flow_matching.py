"""Flow matching (CausVid eq. 2-3): regress the velocity that carries noise to data."""

from __future__ import annotations

import torch
from torch.nn.functional import mse_loss

from causvid.diffusion.flow import add_noise, sigma_of
from causvid.diffusion.velocity import Velocity


def flow_matching_loss(
    velocity: Velocity, x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the velocity at x_t, over all elements (CausVid eq. 3); also the critic's loss.

    x0, noise: [B, C, F, H, W]; timestep: [B] or [B, F]. Returns a scalar.
    """
    x_t = add_noise(x0, noise, sigma_of(timestep))
    return mse_loss(velocity(x_t, timestep).float(), noise - x0)
