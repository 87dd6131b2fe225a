"""The flow matching loss (CausVid eq. 2-3) trains a model to predict the velocity between noise and data."""

from __future__ import annotations

import torch
from torch.nn.functional import mse_loss

from causvid.diffusion.flow import add_noise, sigma_of
from causvid.diffusion.velocity import Velocity


def flow_matching_loss(
    velocity: Velocity, x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Compute the mean squared error of the velocity at x_t (CausVid eq. 3). Teacher and critic use this loss.

    Args:
        velocity: The model.
        x0: Clean latents [B, C, F, H, W].
        noise: Standard normal noise [B, C, F, H, W].
        timestep: Timestep of each sample [B] or of each frame [B, F].

    Returns:
        The loss, a scalar.
    """
    x_t = add_noise(x0, noise, sigma_of(timestep))
    return mse_loss(velocity(x_t, timestep).float(), noise - x0)
