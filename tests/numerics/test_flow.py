"""Test flow-matching conversions, their values at sigma 0 and 1, the guidance convention, and the losses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0, x0_to_velocity
from causvid.diffusion.guidance import guide
from causvid.diffusion.velocity import guided
from causvid.methods.ode_init.loss import ode_regression_loss
from causvid.methods.shared.flow_matching import flow_matching_loss

SIZE = (2, 3, 4, 2, 2)


def draw(seed: int, count: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@given(timestep=st.floats(1.0, 1000.0), seed=st.integers(0, 2**31))
def test_velocity_and_x0_are_inverses_in_float64(timestep: float, seed: int) -> None:
    x_t, velocity = draw(seed, 2)
    sigma = sigma_of(torch.full((2, 4), timestep, dtype=torch.float64))
    x0 = velocity_to_x0(x_t, velocity, sigma)
    torch.testing.assert_close(x0_to_velocity(x_t, x0, sigma), velocity, rtol=1e-12, atol=1e-11)


@given(timestep=st.floats(0.0, 1000.0), seed=st.integers(0, 2**31))
def test_the_true_velocity_gives_x0(timestep: float, seed: int) -> None:
    """If x_t = (1 - sigma) x0 + sigma noise and velocity = noise - x0, the conversion returns x0."""
    x0, noise = draw(seed, 2)
    sigma = sigma_of(torch.full((2,), timestep, dtype=torch.float64))
    x_t = add_noise(x0, noise, sigma)
    torch.testing.assert_close(velocity_to_x0(x_t, noise - x0, sigma), x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversions_are_exact_at_sigma_0_and_1_and_keep_the_dtype(dtype: torch.dtype) -> None:
    x0, noise, velocity = draw(0, 3, dtype)
    zero, one = sigma_of(torch.tensor([0.0, 0.0])), sigma_of(torch.tensor([1000.0, 1000.0]))
    for out, expected in [
        (add_noise(x0, noise, zero), x0),
        (add_noise(x0, noise, one), noise),
        (velocity_to_x0(x0, velocity, zero), x0),  # at t = 0, x0 equals x_t for every velocity
    ]:
        assert out.dtype == dtype
        assert torch.equal(out, expected)


def test_conversions_are_computed_in_float64() -> None:
    """A computation in bfloat16 would have an error of several percent: (x_t - x0) / 0.02 for numbers near 1."""
    sigma = torch.tensor(0.02, dtype=torch.float64)
    x_t, velocity = draw(1, 2, torch.bfloat16)
    exact = (x_t.double() - 0.02 * velocity.double()).to(torch.bfloat16)
    assert torch.equal(velocity_to_x0(x_t, velocity, sigma), exact)
    assert not torch.equal(x_t - torch.tensor(0.02, dtype=torch.bfloat16) * velocity, exact)
    back = x0_to_velocity(x_t, exact, sigma)
    assert torch.equal(back, ((x_t.double() - exact.double()) / 0.02).to(torch.bfloat16))


def test_sigma_shapes() -> None:
    assert sigma_of(torch.tensor([500, 250])).shape == (2, 1, 1, 1, 1)
    per_frame = sigma_of(torch.tensor([[500.0, 0.0, 1000.0]]))
    assert per_frame.shape == (1, 1, 3, 1, 1)
    assert per_frame.flatten().tolist() == [0.5, 0.0, 1.0]
    assert per_frame.dtype == torch.float64


def test_each_frame_has_its_own_noise_level() -> None:
    x0, noise = draw(2, 2)
    x_t = add_noise(x0, noise, sigma_of(torch.tensor([[0.0, 1000.0, 500.0, 0.0]]).expand(2, -1)))
    assert torch.equal(x_t[:, :, 0], x0[:, :, 0])
    assert torch.equal(x_t[:, :, 1], noise[:, :, 1])
    assert torch.equal(x_t[:, :, 2], 0.5 * x0[:, :, 2] + 0.5 * noise[:, :, 2])


def test_the_guidance_convention() -> None:
    """Scale 0 is unconditional, and scale 1 is conditional.

    The original DMD code computes cond + s (cond - uncond), which equals scale s + 1 in this project.
    """
    uncond, cond = draw(3, 2)
    assert torch.equal(guide(uncond, cond, 0), uncond)
    torch.testing.assert_close(guide(uncond, cond, 1), cond)
    torch.testing.assert_close(guide(uncond, cond, 4.5), cond + 3.5 * (cond - uncond))


class _Echo(torch.nn.Module):
    """A model whose velocity is the first number of the text embedding. The model counts its calls and samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.config = torch.nn.Parameter(torch.zeros(1)), dict[str, int]()
        self.rows: list[int] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def forward(
        self, x: torch.Tensor, *, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        assert timestep.shape[0] == len(x)
        self.rows.append(len(x))
        return (torch.zeros_like(x) + encoder_hidden_states[:, :1, :1, None, None],)


def test_guided_needs_one_call_with_a_double_batch_and_a_single_batch_for_scale_1() -> None:
    model, x = _Echo(), torch.zeros(SIZE)
    text, negative = torch.tensor([2.0, 3.0])[:, None, None], torch.tensor([[[1.0]]])
    out = guided(model, text, negative, 3.0)(x, torch.tensor([500.0, 500.0]))
    assert out[:, 0, 0, 0, 0].tolist() == [4.0, 7.0]  # guidance with scale 3: 1 + 3 (2 - 1) = 4 and 1 + 3 (3 - 1) = 7
    out = guided(model, text, negative, 1.0)(x, torch.tensor([500.0, 500.0]))
    assert out[:, 0, 0, 0, 0].tolist() == [2.0, 3.0]
    assert model.rows == [4, 2]


def test_the_flow_matching_loss_is_the_mean_squared_error_of_the_velocity() -> None:
    x0, noise = draw(4, 2, torch.float32)
    timestep = torch.tensor([100.0, 900.0])
    seen = {}

    def truth(x_t: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        seen["x_t"], seen["t"] = x_t, at
        return noise - x0

    assert flow_matching_loss(truth, x0, noise, timestep).item() == 0
    torch.testing.assert_close(seen["x_t"], add_noise(x0, noise, sigma_of(timestep)))
    assert seen["t"] is timestep
    assert flow_matching_loss(lambda x, t: noise - x0 + 2, x0, noise, timestep).item() == pytest.approx(4)


def test_the_ode_loss_uses_noisy_frames_only() -> None:
    clean, states = draw(5, 2, torch.float32)
    timestep = torch.tensor([[0.0, 500.0, 500.0, 0.0], [0.0, 0.0, 0.0, 1000.0]])
    sigma = sigma_of(timestep)
    states = torch.where(sigma == 0, clean, states)

    def velocity(error: float) -> torch.Tensor:
        """Return a velocity whose x0 has the error ``error`` in noisy frames, and a large error in clean frames."""
        return torch.where(sigma == 0, torch.tensor(1e3), (states - clean - error) / sigma.clamp(min=0.1)).float()

    assert ode_regression_loss(lambda *_: velocity(0.0), states, timestep, clean).item() == pytest.approx(0, abs=1e-10)
    assert ode_regression_loss(lambda *_: velocity(3.0), states, timestep, clean).item() == pytest.approx(9, rel=1e-5)


def test_the_ode_loss_of_clean_frames_only_is_zero() -> None:
    """Check that the loss is 0. (The original CausVid code returns NaN, because a mean over zero frames is NaN.)"""
    clean, weight = draw(6, 1, torch.float32)[0], torch.ones((), requires_grad=True)
    loss = ode_regression_loss(lambda x, t: weight * x, clean, torch.zeros(2, 4), clean)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.item() == 0
