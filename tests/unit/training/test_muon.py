"""Muon in the precision of the weights, against torch's in bfloat16 and against what orthogonal means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from causvid.training.muon import Muon, orthogonalise

SHAPES = [(8, 8), (8, 8), (24, 8), (8, 24)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], count: int = 5) -> list[torch.Tensor]:
    """How the weights moved."""
    generator = torch.Generator().manual_seed(1)
    before = [weight.detach().clone() for weight in weights]
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() - old for weight, old in zip(weights, before, strict=True)]


def test_it_is_torch_s_muon_but_for_that_one_s_rounding() -> None:
    ours, theirs = matrices(), matrices()
    moved = steps(Muon(ours, lr=1e-3, weight_decay=0.1, momentum=0.95), ours)
    peer = torch.optim.Muon(theirs, lr=1e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for mine, wanted in zip(moved, steps(peer, theirs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0.03 * wanted.abs().max().item())


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_every_singular_value_comes_near_one(rows: int, columns: int, scale: float) -> None:
    """Whatever the size of the gradient. Those far below the largest take longer than five iterations."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    rank = min(rows, columns)
    matrix = scale * (left[:, :rank] * torch.linspace(1.0, 0.2, rank)) @ right[:, :rank].T
    values = torch.linalg.svdvals(orthogonalise(matrix[None])[0])
    assert 0.6 < values.min() <= values.max() < 1.3


def test_a_stack_is_its_matrices_one_by_one() -> None:
    stack = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, rtol=1e-12, atol=1e-12)
    assert orthogonalise(stack).dtype == torch.float64


def test_a_gradient_of_zeros_moves_nothing_and_a_missing_one_is_left_out() -> None:
    weights = matrices()[:2]
    before = [weight.detach().clone() for weight in weights]
    optimizer = Muon(weights, lr=1e-3, weight_decay=0.0, momentum=0.95)
    weights[0].grad = torch.zeros_like(weights[0])
    optimizer.step()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert weights[1] not in optimizer.state


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1e-3, weight_decay=0.0, momentum=0.95)


def test_a_closure_s_loss_is_returned() -> None:
    weight = matrices()[0]

    def closure() -> float:
        weight.grad = torch.ones_like(weight)
        return 1.5

    assert Muon([weight], lr=1e-3, weight_decay=0.0, momentum=0.95).step(closure) == 1.5
