"""The gradient of DMD is correct for distributions whose scores are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from causvid.diffusion.flow import add_noise, sigma_of
from causvid.methods.dmd.loss import EPSILON, dmd_loss

SIZE = (3, 2, 2, 3, 2)  # [B, C, F, H, W]


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution with independent values, whose score and velocity are known at every noise level."""

    mean: float
    deviation: float

    def score(self, x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the log density of (1 - sigma) x0 + sigma noise."""
        return -(x_t - (1 - sigma) * self.mean) / ((1 - sigma) ** 2 * self.deviation**2 + sigma**2)

    def velocity(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return E[noise - x0 | x_t]. Tweedie: E[noise] = -sigma score, E[x0] = (x_t + sigma^2 score) / (1 - sigma)."""
        sigma = sigma_of(timestep)
        score = self.score(x_t.double(), sigma)
        return (-sigma * score - (x_t + sigma**2 * score) / (1 - sigma)).to(x_t.dtype)


def draw(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample, noise = (torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return sample.requires_grad_(True), noise, torch.tensor([30.0, 500.0, 970.0], dtype=torch.float64)


def gradient_of(
    sample: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor, teacher: Gaussian, critic: Gaussian
) -> torch.Tensor:
    out = dmd_loss(sample, noise, timestep, teacher=teacher.velocity, critic=critic.velocity)
    return torch.autograd.grad(out.loss, sample)[0]


def test_the_gradient_is_the_difference_of_scores() -> None:
    """The gradient follows equation 4 of the CausVid paper.

    x0 of critic - x0 of teacher = sigma^2 / (1 - sigma) (score of critic - score of teacher).
    """
    teacher, critic = Gaussian(1.0, 0.5), Gaussian(-0.5, 1.3)
    sample, noise, timestep = draw(0)
    got = gradient_of(sample, noise, timestep, teacher, critic)

    sigma = sigma_of(timestep)
    x_t = add_noise(sample.detach(), noise, sigma)
    scores = critic.score(x_t, sigma) - teacher.score(x_t, sigma)
    x0_of_teacher = (x_t + sigma**2 * teacher.score(x_t, sigma)) / (1 - sigma)
    normaliser = (sample.detach() - x0_of_teacher).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    expected = sigma**2 / (1 - sigma) * scores / (normaliser + EPSILON) / sample.numel()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_equal_scores_give_no_gradient() -> None:
    sample, noise, timestep = draw(1)
    same = Gaussian(0.3, 0.8)
    assert torch.count_nonzero(gradient_of(sample, noise, timestep, same, same)) == 0


def test_each_sample_has_its_own_normaliser() -> None:
    sample, noise, timestep = draw(2)
    teacher, critic = Gaussian(1.0, 0.5), Gaussian(-0.5, 1.3)
    before = gradient_of(sample, noise, timestep, teacher, critic)
    with torch.no_grad():
        sample[0] *= 50
    after = gradient_of(sample, noise, timestep, teacher, critic)
    assert torch.equal(before[1:], after[1:])
    assert not torch.allclose(before[0], after[0])


def test_the_reported_values_of_the_loss() -> None:
    teacher, critic = Gaussian(1.0, 0.5), Gaussian(-0.5, 1.3)
    sample, noise, timestep = draw(3)
    out = dmd_loss(sample, noise, timestep, teacher=teacher.velocity, critic=critic.velocity)
    gradient = torch.autograd.grad(out.loss, sample)[0] * sample.numel()
    assert out.gradient_size.item() == pytest.approx(gradient.abs().mean().item())
    assert out.loss.item() == pytest.approx(0.5 * gradient.square().mean().item())
    sigma = sigma_of(timestep)
    x_t = add_noise(sample.detach(), noise, sigma)
    x0 = (x_t + sigma**2 * teacher.score(x_t, sigma)) / (1 - sigma)
    assert out.normaliser.item() == pytest.approx((sample - x0).abs().mean().item())


def test_a_float32_sample_is_compared_in_float64() -> None:
    teacher, critic = Gaussian(1.0, 0.5), Gaussian(1.0 + 1e-5, 0.5)
    sample, noise, timestep = draw(4, torch.float32)
    out = dmd_loss(sample, noise, timestep, teacher=teacher.velocity, critic=critic.velocity)
    assert out.loss.dtype == torch.float64
    assert (
        torch.autograd.grad(out.loss, sample)[0].abs().max() > 0
    )  # 0.5 (x - (x - g))^2 in float64 does not lose a difference of 1e-5


def test_a_sample_that_equals_the_prediction_of_the_teacher_causes_no_division_by_zero() -> None:
    sample, noise, timestep = draw(5)
    x_t = add_noise(sample.detach(), noise, sigma_of(timestep))

    def back_to_the_sample(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x - sample.detach()) / sigma_of(t)

    out = dmd_loss(sample, noise, timestep, teacher=back_to_the_sample, critic=back_to_the_sample)
    assert torch.isfinite(torch.autograd.grad(out.loss, sample)[0]).all()
    assert out.normaliser.item() < 1e-9
    assert torch.isfinite(x_t).all()


def test_neither_network_gets_a_gradient() -> None:
    sample, noise, timestep = draw(6)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    out = dmd_loss(sample, noise, timestep, teacher=lambda x, t: weight * x, critic=lambda x, t: 2 * weight * x)
    out.loss.backward()
    assert weight.grad is None
    assert sample.grad is not None


def test_gradient_descent_moves_samples_to_the_distribution_of_the_teacher() -> None:
    """The critic has the distribution of the samples.

    The mean and the deviation of the samples converge to the mean and the deviation of the teacher.
    """
    teacher, generator = Gaussian(2.0, 0.5), torch.Generator().manual_seed(7)
    sample = torch.randn(64, 1, 1, 4, 4, generator=generator, dtype=torch.float64)
    for _ in range(150):
        sample = sample.detach().requires_grad_(True)
        critic = Gaussian(sample.mean().item(), sample.std().item())
        noise = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        timestep = 20 + 960 * torch.rand(64, generator=generator, dtype=torch.float64)
        out = dmd_loss(sample, noise, timestep, teacher=teacher.velocity, critic=critic.velocity)
        (gradient,) = torch.autograd.grad(out.loss, sample)
        sample = sample - 0.03 * sample.numel() * gradient
    assert sample.mean().item() == pytest.approx(2.0, abs=0.1)
    assert sample.std().item() == pytest.approx(0.5, abs=0.1)


def test_excluded_frames_have_no_gradient_and_change_no_mean() -> None:
    """Excluded frames change neither the normaliser nor the loss nor the gradient of the other frames."""
    teacher, critic = Gaussian(1.0, 0.5), Gaussian(-0.5, 1.3)
    sample, noise, timestep = draw(7)
    scored = torch.tensor([[True, False]]).expand(SIZE[0], SIZE[2])
    out = dmd_loss(sample, noise, timestep, teacher=teacher.velocity, critic=critic.velocity, scored=scored)
    gradient = torch.autograd.grad(out.loss, sample)[0]
    short = sample.detach()[:, :, :1].requires_grad_(True)
    alone = dmd_loss(short, noise[:, :, :1], timestep, teacher=teacher.velocity, critic=critic.velocity)
    assert torch.count_nonzero(gradient[:, :, 1]) == 0
    torch.testing.assert_close(gradient[:, :, :1], torch.autograd.grad(alone.loss, short)[0])
    for ours, expected in zip(out, alone, strict=True):
        torch.testing.assert_close(ours, expected)


def test_if_all_frames_are_excluded_the_loss_is_zero() -> None:
    sample, noise, timestep = draw(8)
    scored = torch.zeros(SIZE[0], SIZE[2], dtype=torch.bool)
    teacher, critic = Gaussian(1.0, 0.5), Gaussian(-0.5, 1.3)
    out = dmd_loss(sample, noise, timestep, teacher=teacher.velocity, critic=critic.velocity, scored=scored)
    assert out.loss.item() == 0
    assert torch.count_nonzero(torch.autograd.grad(out.loss, sample)[0]) == 0
