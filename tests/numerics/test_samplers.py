"""Samplers give the known solutions of simple velocities."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from causvid.diffusion.flow import add_noise, sigma_of
from causvid.diffusion.schedule import FlowSchedule
from causvid.sampling.few_step import few_step
from causvid.sampling.ode_solver import solve_ode

SIZE = (2, 3, 2, 2, 2)


def noise_like(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_euler_is_of_order_one_on_a_linear_ode() -> None:
    """The solution of dx/dsigma = x at sigma 0 is x(1) / e. Steps of half the size halve the error."""
    start = noise_like(0)
    errors = []
    for steps in (50, 100, 200, 400):
        end = solve_ode(lambda x, _: x, start, FlowSchedule(shift=1).sigmas(steps))[:, 0]
        errors.append((end - start / math.e).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1, 1, 1], abs=0.02)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_euler_is_exact_on_a_constant_velocity(shift: float) -> None:
    start, clean = noise_like(1), noise_like(2)
    end = solve_ode(lambda *_: start - clean, start, FlowSchedule(shift=shift).sigmas(7))[:, 0]
    torch.testing.assert_close(end, clean, rtol=0, atol=1e-14)


def test_the_solver_returns_the_states_in_the_given_order() -> None:
    start, clean = noise_like(3), noise_like(4)
    sigmas = FlowSchedule(shift=3).sigmas(10)
    states = solve_ode(lambda *_: start - clean, start, sigmas, keep=[-1, 0, 4, 10, 4])
    assert states.shape == (2, 5, *SIZE[1:])
    assert torch.equal(states[:, 1], start)
    for column, index in enumerate([10, 0, 4, 10, 4]):
        torch.testing.assert_close(states[:, column], add_noise(clean, start, sigmas[index]), rtol=0, atol=1e-14)


def test_the_velocity_is_evaluated_at_the_noisier_end_of_each_step() -> None:
    asked = []

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        asked.append(timestep)
        return torch.zeros_like(x)

    solve_ode(velocity, noise_like(5), FlowSchedule(shift=8).sigmas(50))
    assert all(t.shape == (2,) for t in asked)
    assert [t[0].item() for t in asked[:1]] == [1000.0]
    assert asked[36][0].item() == pytest.approx(756.757, abs=5e-4)
    assert len(asked) == 50


@pytest.mark.parametrize("timesteps", [[1000], [1000, 757, 522], [1000, 750, 500, 250]])
def test_few_steps_with_an_exact_model_give_x0(timesteps: list[float]) -> None:
    clean, generator = noise_like(6), torch.Generator().manual_seed(7)
    asked = []

    def perfect(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        asked.append(timestep)
        return (x_t - clean) / sigma_of(timestep)

    drawn = []

    def draw() -> torch.Tensor:
        drawn.append(torch.randn(SIZE, generator=generator, dtype=torch.float64))
        return drawn[-1]

    out = few_step(perfect, noise_like(8), timesteps, draw)
    torch.testing.assert_close(out, clean, rtol=0, atol=1e-13)
    assert [t[0, 0].item() for t in asked] == timesteps
    assert all(t.shape == (2, 2) for t in asked)  # each frame has its own timestep
    assert len(drawn) == len(timesteps) - 1  # new noise is drawn between two steps, and not after the last step


def test_few_steps_add_noise_up_to_the_next_timestep() -> None:
    """The input of the second call is the x0 of the first call with new noise at sigma 0.25."""
    first, fresh = noise_like(9), noise_like(10)
    seen = []

    def velocity(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(x_t)
        return x_t * 0.5

    few_step(velocity, first, [1000, 250], lambda: fresh)
    torch.testing.assert_close(seen[1], 0.75 * (first * 0.5) + 0.25 * fresh)
