"""Compute the loss of distribution matching distillation (DMD; CausVid eq. 4) from the difference of two scores."""

from __future__ import annotations

from typing import NamedTuple

import torch

from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity

EPSILON = 1.0e-6  # avoids a division by zero if a sample equals the teacher's prediction

ALL = (0, 1, 2, 3, 4)  # axes of [B, C, F, H, W]


class DmdLoss(NamedTuple):
    """The loss and two values to log, all scalars.

    Attributes:
        loss: A loss whose gradient with respect to the sample is the DMD gradient.
        gradient_size: Mean absolute value of the gradient.
        normaliser: Mean absolute difference between sample and x0 of the teacher.
    """

    loss: torch.Tensor
    gradient_size: torch.Tensor
    normaliser: torch.Tensor


def dmd_loss(
    sample: torch.Tensor,
    noise: torch.Tensor,
    timestep: torch.Tensor,
    *,
    teacher: Velocity,
    critic: Velocity,
    scored: torch.Tensor | None = None,
) -> DmdLoss:
    """Compute the student's loss (CausVid eq. 4, algorithm 1 line 9) with the per-sample normaliser of DMD2.

    The gradient with respect to ``sample`` is (x0 of critic - x0 of teacher) / mean |sample - x0 of teacher| / number
    of elements.

    Args:
        sample: The student's x0 [B, C, F, H, W], the only input with a gradient.
        noise: Noise of the same shape, which is added to the sample.
        timestep: One timestep for all frames of a sample [B].
        teacher: Velocity of the teacher, including guidance.
        critic: Velocity of the critic.
        scored: Frames [B, F] that both means include; None = all frames.

    Returns:
        The loss and two values to log.
    """
    with torch.no_grad():
        sigma = sigma_of(timestep)
        x_t = add_noise(sample, noise, sigma)
        real = velocity_to_x0(x_t, teacher(x_t, timestep), sigma).double()
        fake = velocity_to_x0(x_t, critic(x_t, timestep), sigma).double()
        distance = (sample.double() - real).abs()
        normaliser = _mean(distance, scored, ALL[1:])
        gradient = (fake - real) / (normaliser + EPSILON)
        target = sample.double() - gradient
    loss = 0.5 * _mean((sample.double() - target).square(), scored, ALL).squeeze()
    return DmdLoss(loss=loss, gradient_size=_mean(gradient.abs(), scored, ALL).squeeze(), normaliser=normaliser.mean())


def _mean(x: torch.Tensor, scored: torch.Tensor | None, dim: tuple[int, ...]) -> torch.Tensor:
    """Return the mean of ``x`` [B, C, F, H, W] over ``dim``, in the frames ``scored`` [B, F] only; 0 for no frames."""
    if scored is None:
        return x.mean(dim=dim, keepdim=True)
    weight = scored[:, None, :, None, None].to(x.dtype).expand_as(x)
    return (x * weight).sum(dim=dim, keepdim=True) / weight.sum(dim=dim, keepdim=True).clamp(min=1)
