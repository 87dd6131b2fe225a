"""Compute the loss of ODE regression: the student predicts the clean end of a trajectory (CausVid eq. 6)."""

from __future__ import annotations

import torch

from causvid.diffusion.flow import sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity


def ode_regression_loss(
    velocity: Velocity, states: torch.Tensor, timestep: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """Compute the mean squared error of the predicted x0 in the noisy frames (CausVid eq. 6).

    Frames at timestep 0 are context for the student and are not included in the mean.

    Args:
        velocity: The student.
        states: Noisy states of the trajectories [B, C, F, H, W].
        timestep: Timestep of each frame [B, F].
        clean: Clean ends of the trajectories [B, C, F, H, W].

    Returns:
        The loss, a scalar; 0 if no frame is noisy.
    """
    x0 = velocity_to_x0(states, velocity(states, timestep), sigma_of(timestep))
    per_frame = (x0 - clean).square().mean(dim=(1, 3, 4))
    noisy = (timestep > 0).to(per_frame.dtype)
    return (per_frame * noisy).sum() / noisy.sum().clamp(min=1)
