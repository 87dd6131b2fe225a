"""Distribution matching distillation (DMD; CausVid eq. 4): move samples along the difference of two scores."""

from __future__ import annotations

from typing import NamedTuple

import torch

from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity

EPSILON = 1.0e-6  # a sample that already equals the teacher's prediction must not divide by zero

ALL = (0, 1, 2, 3, 4)  # axes of [B, C, F, H, W]


class DmdLoss(NamedTuple):
    """loss: its gradient is DMD's; gradient_size: mean |gradient|; normaliser: mean |sample - x0 of teacher|."""

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
    """DMD's generator loss (CausVid eq. 4, algorithm 1 line 9) with DMD2's per-sample normaliser.

    sample: the student's x0 [B, C, F, H, W], the only input with a gradient; timestep: [B], one time for all frames.
    teacher (with guidance inside) and critic give velocities at x_t. The gradient with respect to ``sample`` is
    (x0 of critic - x0 of teacher) / mean |sample - x0 of teacher| / number of elements. scored: frames [B, F] that
    count, in both means; None = all.
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
    """Mean over ``dim`` of ``x`` [B, C, F, H, W], of the frames ``scored`` [B, F] alone; 0 where there are none."""
    if scored is None:
        return x.mean(dim=dim, keepdim=True)
    weight = scored[:, None, :, None, None].to(x.dtype).expand_as(x)
    return (x * weight).sum(dim=dim, keepdim=True) / weight.sum(dim=dim, keepdim=True).clamp(min=1)
