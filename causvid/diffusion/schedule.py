"""Compute the noise levels of a solver, and select the solver states that train the few-step student.

This module imports torch only in the function that creates a tensor, so that params are read without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Noise = TypeVar("Noise", float, "torch.Tensor")
TRAIN_TIMESTEPS = 1000
# Maximum difference between two timesteps that count as equal. The timesteps 757 and 522 in the original CausVid code
# are rounded: a 50-step solver has states at 756.757 and 521.739.
COLUMN_TOLERANCE = 0.5


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """A schedule of noise levels sigma = shift s / (1 + (shift - 1) s) for equally spaced s (SD3 eq. 23)."""

    shift: float

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"schedule.shift is {self.shift}; it must be positive (1 = no shift)")

    def shifted(self, s: Noise) -> Noise:
        """Return sigma in [0, 1] for the unshifted noise level ``s`` in [0, 1]."""
        return self.shift * s / (1 + (self.shift - 1) * s)

    def sigmas(self, steps: int) -> torch.Tensor:
        """Return the ``steps`` + 1 noise levels of a solver in float64, from exactly 1 to exactly 0."""
        import torch

        _require_steps(steps)
        return self.shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def trajectory_columns(self, steps: int, timesteps: Sequence[float]) -> list[int]:
        """Return for each of ``timesteps`` the index of the solver state at this timestep.

        Args:
            steps: Number of steps of the solver, which has ``steps`` + 1 states.
            timesteps: Timesteps in [0, 1000].

        Raises:
            ValueError: A timestep differs from every state by more than ``COLUMN_TOLERANCE``. The message lists the
                nearest states.
        """
        _require_steps(steps)
        states = [self.shifted(1 - k / steps) * TRAIN_TIMESTEPS for k in range(steps + 1)]
        columns = []
        for timestep in timesteps:
            distances = [abs(state - timestep) for state in states]
            column = distances.index(min(distances))
            if distances[column] > COLUMN_TOLERANCE:
                near = sorted({round(states[k], 1) for k in range(max(0, column - 1), min(steps, column + 1) + 1)})
                raise ValueError(
                    f"schedule.denoising_timesteps has {timestep:g}, which is not a state of a solver with "
                    f"schedule.solver_steps {steps} and schedule.shift {self.shift:g}; the nearest states are {near}"
                )
            columns.append(column)
        return columns


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"schedule.solver_steps is {steps}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Params section ``schedule``.

    Attributes:
        shift: Shift of the solver's noise levels.
        solver_steps: Number of Euler steps of the solver.
        denoising_timesteps: Decreasing timesteps of the student, from 1000 (pure noise) to a value above 0.
        context_timestep: Timestep of the context pass, which writes a finished block into the KV cache.
    """

    shift: float
    solver_steps: int
    denoising_timesteps: tuple[float, ...]
    context_timestep: float

    def __post_init__(self) -> None:
        steps = self.denoising_timesteps
        if not steps or steps[0] != TRAIN_TIMESTEPS:
            raise ValueError(
                f"schedule.denoising_timesteps is {list(steps)}; it must start at {TRAIN_TIMESTEPS}, pure noise"
            )
        if any(after >= before for before, after in pairwise(steps)) or steps[-1] <= 0:
            raise ValueError(
                f"schedule.denoising_timesteps is {list(steps)}; its values must decrease and be above 0 "
                "(schedule.context_timestep is the timestep of clean context)"
            )
        if not 0 <= self.context_timestep < TRAIN_TIMESTEPS:
            raise ValueError(
                f"schedule.context_timestep is {self.context_timestep:g}; it must be in [0, {TRAIN_TIMESTEPS}): "
                f"0 is clean, and {TRAIN_TIMESTEPS} is pure noise, which has no information about the block"
            )
        self.columns()  # raises ValueError if the solver has no state at a denoising timestep

    @property
    def grid(self) -> FlowSchedule:
        """Return the noise level schedule of the solver."""
        return FlowSchedule(shift=self.shift)

    def columns(self) -> list[int]:
        """Return the indices of the solver states in an ODE pair: one per denoising timestep, and the clean end."""
        return [*self.grid.trajectory_columns(self.solver_steps, self.denoising_timesteps), self.solver_steps]

    def stored_timesteps(self) -> list[float]:
        """Return the timesteps of the states in an ODE pair, in decreasing order from 1000 to exactly 0."""
        return (self.grid.sigmas(self.solver_steps)[self.columns()] * TRAIN_TIMESTEPS).tolist()
