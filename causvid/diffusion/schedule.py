"""Which noise levels a solver visits, and which of its states the few-step student will see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from causvid.diffusion.flow import TRAIN_TIMESTEPS

# The released steps 757 and 522 are rounded states 756.757 and 521.739 of its 50-step grid.
COLUMN_TOLERANCE = 0.5


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """A shifted flow-matching grid: sigma = shift s / (1 + (shift - 1) s) for even s (SD3 eq. 23)."""

    shift: float

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"schedule.shift is {self.shift}; it must be positive (1 = no shift)")

    def shifted(self, s: torch.Tensor) -> torch.Tensor:
        """sigma in [0, 1] of unshifted ``s`` in [0, 1]."""
        return self.shift * s / (1 + (self.shift - 1) * s)

    def sigmas(self, steps: int) -> torch.Tensor:
        """The ``steps`` + 1 noise levels of a solver, from exactly 1 down to exactly 0, float64."""
        if steps < 1:
            raise ValueError(f"schedule.solver_steps is {steps}; it must be at least 1")
        return self.shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def trajectory_columns(self, steps: int, timesteps: Sequence[float]) -> list[int]:
        """Indices among the ``steps`` + 1 solver states that hold ``timesteps``.

        Raises ValueError naming the timestep that is no state of this solver and the nearest ones that are.
        """
        states = self.sigmas(steps) * TRAIN_TIMESTEPS
        columns = []
        for timestep in timesteps:
            column = int((states - timestep).abs().argmin())
            if abs(states[column].item() - timestep) > COLUMN_TOLERANCE:
                near = sorted(
                    {round(states[k].item(), 1) for k in range(max(0, column - 1), min(steps, column + 1) + 1)}
                )
                raise ValueError(
                    f"schedule.denoising_timesteps has {timestep:g}, which is not a state of a solver with "
                    f"schedule.solver_steps {steps} and schedule.shift {self.shift:g}; near it are {near}"
                )
            columns.append(column)
        return columns


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Params section ``schedule``.

    shift: of the teacher's solver grid; solver_steps: Euler steps; denoising_timesteps: the student's steps from noise
    to clean, in (0, 1000]; context_timestep: time of the pass that writes a finished block into the KV cache.
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
                f"schedule.denoising_timesteps is {list(steps)}; it must fall and stay above 0 "
                "(clean context is schedule.context_timestep)"
            )
        if not 0 <= self.context_timestep < TRAIN_TIMESTEPS:
            raise ValueError(
                f"schedule.context_timestep is {self.context_timestep:g}; it must be in [0, {TRAIN_TIMESTEPS}): "
                "0 is clean, noise would say nothing about the block"
            )
        self.columns()  # every step must be a state of the solver

    @property
    def grid(self) -> FlowSchedule:
        """The teacher's solver grid."""
        return FlowSchedule(shift=self.shift)

    def columns(self) -> list[int]:
        """Solver states stored in an ODE pair: one per denoising step, then the clean end."""
        return [*self.grid.trajectory_columns(self.solver_steps, self.denoising_timesteps), self.solver_steps]

    def stored_timesteps(self) -> list[float]:
        """Times of the stored states, from 1000 down to exactly 0."""
        return (self.grid.sigmas(self.solver_steps)[self.columns()] * TRAIN_TIMESTEPS).tolist()
