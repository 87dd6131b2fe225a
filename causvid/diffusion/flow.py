"""Flow matching: x_t = (1 - sigma) x0 + sigma noise, velocity = noise - x0, sigma = t / 1000 exactly.

Conversions run in float64 and return the input's dtype: dividing by a small sigma in bfloat16 would cost digits
(x0 from velocity and back must be the identity). At sigma = 0, x0 = x_t whatever the velocity.
"""

from __future__ import annotations

import torch

TRAIN_TIMESTEPS = 1000


def sigma_of(timestep: torch.Tensor) -> torch.Tensor:
    """Noise level of ``timestep`` in float64. Shape [B] becomes [B, 1, 1, 1, 1] and [B, F] becomes [B, 1, F, 1, 1]."""
    sigma = timestep.double() / TRAIN_TIMESTEPS
    return sigma.view(-1, 1, 1, 1, 1) if sigma.ndim == 1 else sigma[:, None, :, None, None]


def add_noise(x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t of ``x0`` and ``noise`` [B, C, F, H, W]; ``sigma`` broadcasts against them."""
    sigma = sigma.double()
    return ((1 - sigma) * x0.double() + sigma * noise.double()).to(x0.dtype)


def velocity_to_x0(x_t: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Clean latent that ``velocity`` at ``x_t`` points to: x_t - sigma velocity."""
    return (x_t.double() - sigma.double() * velocity.double()).to(x_t.dtype)


def x0_to_velocity(x_t: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Inverse of ``velocity_to_x0``; sigma must be positive."""
    return ((x_t.double() - x0.double()) / sigma.double()).to(x_t.dtype)
