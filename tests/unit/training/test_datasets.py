"""Test that every epoch is a permutation of the samples that depends on the seed and the epoch only."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from causvid.training.datasets import sample_index


@given(seed=st.integers(0, 2**40), size=st.integers(1, 40), epoch=st.integers(0, 1000))
def test_an_epoch_contains_every_sample_once(seed: int, size: int, epoch: int) -> None:
    order = [sample_index(seed, epoch * size + k, size) for k in range(size)]
    assert sorted(order) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    """Check that epochs differ. (The original CausVid code never calls set_epoch, so its sampler repeats one order.)"""
    orders = {tuple(sample_index(seed, e * 20 + k, 20) for k in range(20)) for seed in (0, 1) for e in range(3)}
    assert len(orders) == 6


def test_a_position_gives_the_same_sample_without_earlier_positions() -> None:
    forward = [sample_index(3, k, 7) for k in range(50)]
    torch.manual_seed(0)
    torch.rand(5)
    assert [sample_index(3, k, 7) for k in reversed(range(50))] == forward[::-1]
