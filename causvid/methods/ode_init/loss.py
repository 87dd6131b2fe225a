"""ODE regression (CausVid eq. 6): the student jumps from any stored state of a trajectory to its clean end."""

from __future__ import annotations

import torch

from causvid.diffusion.flow import sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity


def ode_regression_loss(
    velocity: Velocity, states: torch.Tensor, timestep: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of predicted x0 over the frames that carry noise (CausVid eq. 6).

    states: [B, C, F, H, W], frame f of sample b at time ``timestep[b, f]``; clean: the trajectory's end, same shape.
    Frames at t = 0 are context: they are seen, not scored. A batch of context only has loss 0. Returns a scalar.
    """
    x0 = velocity_to_x0(states, velocity(states, timestep), sigma_of(timestep))
    per_frame = (x0 - clean).square().mean(dim=(1, 3, 4))
    noisy = (timestep > 0).to(per_frame.dtype)
    return (per_frame * noisy).sum() / noisy.sum().clamp(min=1)
