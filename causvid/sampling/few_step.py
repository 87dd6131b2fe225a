"""Sample in few steps: predict x0, add noise up to the next timestep, predict x0 again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch

from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity


def few_step(
    velocity: Velocity, noise: torch.Tensor, timesteps: Sequence[float], draw: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Generate x0 in a few steps.

    If gradients are enabled, they flow only through the last prediction (Self-Forcing, arXiv 2506.08009).

    Args:
        velocity: Velocity of the student.
        noise: Initial noise [B, C, F, H, W].
        timesteps: Decreasing timesteps.
        draw: Function that returns new noise in the shape of ``noise``. It is called between two timesteps.

    Returns:
        The predicted x0 [B, C, F, H, W].
    """
    with torch.no_grad():
        *_, x = noisy_states(velocity, noise, timesteps, draw)
    return _predict_x0(velocity, x, timesteps[-1])


def noisy_states(
    velocity: Velocity, noise: torch.Tensor, timesteps: Sequence[float], draw: Callable[[], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Yield the model input [B, C, F, H, W] at each of ``timesteps``: pure noise, later x0 with new noise.

    A student that is trained on these inputs has the same inputs in training and in sampling (backward simulation of
    DMD2). The arguments are those of ``few_step``.
    """
    x = noise
    yield x
    for before, after in pairwise(timesteps):
        x0 = _predict_x0(velocity, x, before)
        x = add_noise(x0, draw(), sigma_of(_times(x0, after)))
        yield x


def _predict_x0(velocity: Velocity, x: torch.Tensor, value: float) -> torch.Tensor:
    timestep = _times(x, value)
    return velocity_to_x0(x, velocity(x, timestep), sigma_of(timestep))


def _times(x: torch.Tensor, value: float) -> torch.Tensor:
    return torch.full((x.shape[0], x.shape[2]), float(value), device=x.device)
