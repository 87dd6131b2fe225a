"""Times to train at. Functions of the generator that is passed in; times are float64 in [0, 1000]."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from causvid.diffusion.flow import TRAIN_TIMESTEPS
from causvid.diffusion.schedule import FlowSchedule
from causvid.runtime.shapes import BlockLayout


def block_choices(layout: BlockLayout, choices: int, generator: torch.Generator) -> torch.Tensor:
    """One of ``choices`` indices per block, shared by the block's frames (CausVid sec. 4.2). Returns int64 [F]."""
    drawn = torch.randint(choices, (layout.blocks,), generator=generator)
    return drawn.repeat_interleave(layout.frames_per_block)


def stratified_timestep(position: int, batch: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Time for sample ``position`` of a batch whose unshifted times cover [0, 1) evenly. Returns a scalar."""
    u = (position + torch.rand((), generator=generator, dtype=torch.float64)) / batch
    return FlowSchedule(shift=shift).shifted(u) * TRAIN_TIMESTEPS


def stratified_block_timesteps(
    layout: BlockLayout, batch: int, shift: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Times of a global batch, one per sample and block (diffusion forcing). Returns [batch, F].

    Every block's unshifted times cover [0, 1) evenly over the batch, dealt out to the samples by the block's own
    generator: so the blocks of a sample are independent of each other.
    """
    blocks = [
        (torch.randperm(batch, generator=draw) + torch.rand(batch, generator=draw, dtype=torch.float64)) / batch
        for draw in generators
    ]
    assert len(blocks) == layout.blocks
    times = FlowSchedule(shift=shift).shifted(torch.stack(blocks, dim=1)) * TRAIN_TIMESTEPS
    return times.repeat_interleave(layout.frames_per_block, dim=1)


def score_timestep(shift: float, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Time at which DMD compares scores: uniform, shifted, then clamped to [low, high]. Returns a scalar."""
    u = torch.rand((), generator=generator, dtype=torch.float64)
    return (FlowSchedule(shift=shift).shifted(u) * TRAIN_TIMESTEPS).clamp(low, high)
