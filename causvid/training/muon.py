"""Implement Muon (Jordan et al. 2024), an optimizer for matrices that orthogonalises the Nesterov momentum update.

torch.optim.Muon always multiplies in bfloat16. On a CPU that only emulates bfloat16, an optimizer step took longer than
the forward and backward pass (docs/log.md, 2026-11-28). The class in this module computes in the dtype of the gradients
and orthogonalises all matrices of equal shape together, in a few large products instead of hundreds of small products.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from causvid.training.distributed import part_of

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c in p(s) = a s + b s^3 + c s^5, which moves s towards 1
ITERATIONS = 5
EPSILON = 1e-7  # prevents a division by zero if all gradients are zero
UPDATE_RMS = 0.2  # RMS of an update; AdamW is similar and can share the learning rate (Liu et al. 2025, eq. 4)


class Muon(torch.optim.Optimizer):
    """Muon for matrices [M, N], equal to torch.optim.Muon(adjust_lr_fn="match_rms_adamw") except for rounding."""

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"a parameter of Muon has shape {tuple(matrix.shape)}; it must be a matrix")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply decoupled weight decay, and then the orthogonalised Nesterov momentum update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.device].append(matrix)
            for matrices in alike.values():
                self._step_alike(matrices, group["lr"], group["weight_decay"], group["momentum"])
        return loss

    def _step_alike(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        updates = []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            update = matrix.grad.lerp(buffer, momentum)
            # The singular values of a shard differ from those of the whole matrix.
            updates.append(update.full_tensor() if isinstance(update, DTensor) else update)
        scale = UPDATE_RMS * math.sqrt(max(matrices[0].shape))
        for matrix, update in zip(matrices, orthogonalise(torch.stack(updates)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(part_of(update, matrix), alpha=-lr * scale)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Move the singular values of each matrix in [K, M, N] close to 1, with Newton-Schulz iterations."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)  # all singular values are now at most 1
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
