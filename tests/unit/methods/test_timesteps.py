"""Timesteps of training have the intended distributions."""

from __future__ import annotations

import pytest
import torch

from causvid.methods.shared.timesteps import (
    block_choices,
    score_timestep,
    stratified_block_timesteps,
    stratified_timestep,
)
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import BlockLayout


def test_the_frames_of_a_block_share_a_choice_and_blocks_do_not() -> None:
    layout = BlockLayout(frames=21, frames_per_block=3)
    draws = torch.stack([block_choices(layout, 4, generator(0, "x", k)) for k in range(400)])
    assert draws.shape == (400, 21)
    blocks = draws.view(400, 7, 3)
    assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
    counts = torch.bincount(blocks[..., 0].flatten(), minlength=4) / blocks[..., 0].numel()
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    pairs = torch.corrcoef(blocks[..., 0].double().T)
    assert (pairs - torch.eye(7)).abs().max() < 0.2


def test_score_timesteps_have_the_distribution_of_the_original_causvid_code() -> None:
    """The original CausVid code has shift 8 and clamps timesteps to [20, 980].

    14 % of the drawn timesteps are 980, and the quartiles are 727, 889 and 960.
    """
    times = torch.stack([score_timestep(8.0, 20, 980, generator(0, "score", k)) for k in range(4000)])
    assert times.dtype == torch.float64
    assert times.min() >= 20
    assert times.max() == 980
    assert (times == 980).double().mean().item() == pytest.approx(0.14, abs=0.02)
    quartiles = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    assert quartiles == pytest.approx([727, 889, 960], abs=12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_batch_has_one_timestep_in_every_stratum(shift: float) -> None:
    times = torch.stack([stratified_timestep(k, 16, shift, generator(1, "t", k)) for k in range(16)])
    sigma = times / 1000
    unshifted = sigma / (shift - (shift - 1) * sigma)
    assert [int(u * 16) for u in unshifted.tolist()] == list(range(16))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_block_has_one_timestep_in_every_stratum_and_blocks_are_independent(shift: float) -> None:
    """In diffusion forcing, each block covers the schedule over a batch. The blocks of a sample are independent."""
    layout, batch = BlockLayout(frames=6, frames_per_block=2), 512
    times = stratified_block_timesteps(layout, batch, shift, [generator(1, "b", k) for k in range(3)])
    assert (times.shape, times.dtype) == ((batch, 6), torch.float64)
    assert torch.equal(times[:, 0::2], times[:, 1::2])  # all frames of a block share a timestep
    sigma = times[:, ::2] / 1000
    unshifted = sigma / (shift - (shift - 1) * sigma)
    for block in unshifted.T:
        assert sorted(int(u * batch) for u in block.tolist()) == list(range(batch))
    assert (torch.corrcoef(unshifted.T) - torch.eye(3)).abs().max() < 0.15
    assert (torch.corrcoef(torch.stack([unshifted[:, 0], torch.arange(batch).double()]))[0, 1]).abs() < 0.15


def test_timesteps_depend_on_the_generator_only() -> None:
    for law in (
        lambda g: score_timestep(8.0, 20, 980, g),
        lambda g: stratified_timestep(3, 8, 3.0, g),
        lambda g: stratified_block_timesteps(BlockLayout(frames=2, frames_per_block=2), 4, 3.0, [g]),
        lambda g: block_choices(BlockLayout(frames=6, frames_per_block=1), 4, g),
    ):
        torch.manual_seed(0)
        first = law(generator(5))
        torch.manual_seed(1)
        assert torch.equal(first, law(generator(5)))
        assert not all(torch.equal(first, law(generator(k))) for k in range(6, 12))
