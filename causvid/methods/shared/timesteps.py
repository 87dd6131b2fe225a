"""Draw training timesteps from random generators. Timesteps are float64 values between 0 and 1000."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from causvid.diffusion.schedule import TRAIN_TIMESTEPS, FlowSchedule
from causvid.runtime.shapes import BlockLayout


def block_choices(layout: BlockLayout, choices: int, generator: torch.Generator) -> torch.Tensor:
    """Draw an index below ``choices`` for each block (CausVid sec. 4.2), and return it for every frame, int64 [F]."""
    drawn = torch.randint(choices, (layout.blocks,), generator=generator)
    return drawn.repeat_interleave(layout.frames_per_block)


def stratified_timestep(position: int, batch: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Draw the timestep of sample ``position``, a scalar. The unshifted times of a batch cover [0, 1) evenly."""
    u = (position + torch.rand((), generator=generator, dtype=torch.float64)) / batch
    return FlowSchedule(shift=shift).shifted(u) * TRAIN_TIMESTEPS


def stratified_block_timesteps(
    layout: BlockLayout, batch: int, shift: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Draw one timestep for each sample and block of a global batch (diffusion forcing).

    In each block, the unshifted times of all samples cover [0, 1) evenly. Each block has a separate generator, which
    assigns the times to the samples. The timesteps of different blocks are therefore independent.

    Returns:
        Timesteps, repeated for each frame of a block [batch, F].
    """
    blocks = [
        (torch.randperm(batch, generator=draw) + torch.rand(batch, generator=draw, dtype=torch.float64)) / batch
        for draw in generators
    ]
    assert len(blocks) == layout.blocks
    times = FlowSchedule(shift=shift).shifted(torch.stack(blocks, dim=1)) * TRAIN_TIMESTEPS
    return times.repeat_interleave(layout.frames_per_block, dim=1)


def score_timestep(shift: float, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a timestep at which DMD compares scores: uniform, shifted, then clamped to [low, high]; a scalar."""
    u = torch.rand((), generator=generator, dtype=torch.float64)
    return (FlowSchedule(shift=shift).shifted(u) * TRAIN_TIMESTEPS).clamp(low, high)
