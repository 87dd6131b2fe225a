"""Schedules equal those of the original CausVid code, and a schedule that does not fit its solver raises an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig


def times(shift: float, steps: int) -> torch.Tensor:
    return FlowSchedule(shift=shift).sigmas(steps) * 1000


def schedule(**changes: Any) -> ScheduleConfig:
    released: dict[str, Any] = {
        "shift": 8.0,
        "solver_steps": 50,
        "denoising_timesteps": (1000, 757, 522),
        "context_timestep": 0.0,
    }
    return ScheduleConfig(**{**released, **changes})


def test_states_of_the_original_causvid_trajectories() -> None:
    """The original configuration has 50 Euler steps at shift 8.

    The states 36 and 44 of this solver are at timesteps 756.757 and 521.739.
    """
    assert times(8, 50)[36].item() == pytest.approx(756.757, abs=5e-4)
    assert times(8, 50)[44].item() == pytest.approx(521.739, abs=5e-4)
    assert schedule().columns() == [0, 36, 44, 50]
    assert schedule().stored_timesteps() == pytest.approx([1000, 756.757, 521.739, 0], abs=5e-4)
    assert schedule().stored_timesteps()[-1] == 0


@pytest.mark.parametrize(("shift", "expected"), [(8, [960, 888.889, 727.273]), (5, [937.5, 833.333, 625])])
def test_the_four_steps_after_the_shift(shift: float, expected: list[float]) -> None:
    """The original CausVid code shifts the timesteps 750, 500 and 250. Grids with 4n steps contain the results."""
    warped = FlowSchedule(shift=shift).shifted(torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)) * 1000
    assert warped.tolist() == pytest.approx(expected, abs=5e-4)
    for steps in (4, 48, 100):
        columns = FlowSchedule(shift=shift).trajectory_columns(steps, [1000, *expected, 0])
        assert columns == [0, steps // 4, steps // 2, steps * 3 // 4, steps]


@given(shift=st.floats(0.5, 20), steps=st.integers(1, 1000))
def test_a_grid_decreases_from_exactly_one_to_exactly_zero(shift: float, steps: int) -> None:
    sigmas = FlowSchedule(shift=shift).sigmas(steps)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (steps + 1,)
    assert (sigmas[0].item(), sigmas[-1].item()) == (1.0, 0.0)
    assert (sigmas.diff() < 0).all()


def test_without_a_shift_steps_are_equal() -> None:
    assert times(1, 4).tolist() == [1000, 750, 500, 250, 0]


def test_the_error_for_a_wrong_timestep_lists_the_nearest_states() -> None:
    with pytest.raises(
        ValueError, match=r"denoising_timesteps has 750, .*solver_steps 50 .*shift 8; the nearest states are \["
    ) as error:
        schedule(denoising_timesteps=(1000, 750))
    assert "756.8" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": 0.0}, "schedule.shift is 0.0; it must be positive"),
        ({"solver_steps": 0}, "schedule.solver_steps is 0; it must be at least 1"),
        ({"denoising_timesteps": ()}, "must start at 1000"),
        ({"denoising_timesteps": (757, 522)}, "must start at 1000"),
        ({"denoising_timesteps": (1000, 522, 757)}, "must decrease and be above 0"),
        ({"denoising_timesteps": (1000, 757, 757)}, "must decrease and be above 0"),
        ({"denoising_timesteps": (1000, 757, 0)}, "must decrease and be above 0"),
        ({"context_timestep": 1000.0}, r"schedule.context_timestep is 1000; it must be in \[0, 1000\)"),
        ({"context_timestep": -1.0}, "schedule.context_timestep is -1"),
    ],
)
def test_a_wrong_schedule_is_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**changes)
