"""Compare Muon in float32 with torch.optim.Muon, and with the definition of an orthogonal matrix."""

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
    """Return the total change of each weight after ``count`` optimizer steps."""
    generator = torch.Generator().manual_seed(1)
    before = [weight.detach().clone() for weight in weights]
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() - old for weight, old in zip(weights, before, strict=True)]


def test_muon_equals_that_of_torch_up_to_rounding() -> None:
    ours, theirs = matrices(), matrices()
    moved = steps(Muon(ours, lr=1e-3, weight_decay=0.1, momentum=0.95), ours)
    peer = torch.optim.Muon(theirs, lr=1e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for mine, wanted in zip(moved, steps(peer, theirs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0.03 * wanted.abs().max().item())


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_all_singular_values_become_close_to_one(rows: int, columns: int, scale: float) -> None:
    """The result holds for every scale of the gradient, except for singular values far below the largest."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    rank = min(rows, columns)
    matrix = scale * (left[:, :rank] * torch.linspace(1.0, 0.2, rank)) @ right[:, :rank].T
    values = torch.linalg.svdvals(orthogonalise(matrix[None])[0])
    assert 0.6 < values.min() <= values.max() < 1.3


def test_stacked_matrices_give_the_same_result_as_single_matrices() -> None:
    stack = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, rtol=1e-12, atol=1e-12)
    assert orthogonalise(stack).dtype == torch.float64


def test_a_zero_or_missing_gradient_changes_no_weight() -> None:
    weights = matrices()[:2]
    before = [weight.detach().clone() for weight in weights]
    optimizer = Muon(weights, lr=1e-3, weight_decay=0.0, momentum=0.95)
    weights[0].grad = torch.zeros_like(weights[0])
    optimizer.step()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert weights[1] not in optimizer.state


def test_parameters_that_are_not_matrices_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1e-3, weight_decay=0.0, momentum=0.95)


def test_the_loss_of_a_closure_is_returned() -> None:
    weight = matrices()[0]

    def closure() -> float:
        weight.grad = torch.ones_like(weight)
        return 1.5

    assert Muon([weight], lr=1e-3, weight_decay=0.0, momentum=0.95).step(closure) == 1.5
