"""Convert between x0, x_t and velocity: x_t = (1 - sigma) x0 + sigma noise, velocity = noise - x0, sigma = t / 1000.

The conversions compute in float64 and return the dtype of the first argument. In bfloat16, a division by a small sigma
would lose digits, but the conversion from velocity to x0 and back must be the identity. At sigma = 0, x0 equals x_t for
every velocity.
"""

from __future__ import annotations

import torch

from causvid.diffusion.schedule import TRAIN_TIMESTEPS


def sigma_of(timestep: torch.Tensor) -> torch.Tensor:
    """Return the noise level at ``timestep`` in float64, shaped to broadcast against a video.

    Args:
        timestep: Timesteps between 0 and 1000, with shape [B] or [B, F].

    Returns:
        Noise level sigma, with shape [B, 1, 1, 1, 1] or [B, 1, F, 1, 1].
    """
    sigma = timestep.double() / TRAIN_TIMESTEPS
    return sigma.view(-1, 1, 1, 1, 1) if sigma.ndim == 1 else sigma[:, None, :, None, None]


def add_noise(x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return x_t from ``x0`` and ``noise`` [B, C, F, H, W]; ``sigma`` must be broadcastable to this shape."""
    sigma = sigma.double()
    return ((1 - sigma) * x0.double() + sigma * noise.double()).to(x0.dtype)


def velocity_to_x0(x_t: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the clean latent that ``velocity`` predicts at ``x_t``: x_t - sigma velocity."""
    return (x_t.double() - sigma.double() * velocity.double()).to(x_t.dtype)


def x0_to_velocity(x_t: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the velocity that predicts ``x0`` at ``x_t``: (x_t - x0) / sigma. ``sigma`` must be positive."""
    return ((x_t.double() - x0.double()) / sigma.double()).to(x_t.dtype)
