"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for matrices.

torch.optim.Muon multiplies in bfloat16, whatever the weights are. A CPU without bfloat16 products emulates them: there
one step of it took longer than the forward and backward pass before it (docs/log.md, 2026-11-28). Here float32 stays
float32, and matrices of one shape are orthogonalised together: few large products in place of hundreds of small ones.
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

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic p(s) = a s + b s^3 + c s^5 that drives every s towards 1
ITERATIONS = 5
EPSILON = 1e-7  # a gradient of zeros stays one
UPDATE_RMS = 0.2  # about that of AdamW's updates, so that one learning rate serves both (Liu et al. 2025, eq. 4)


class Muon(torch.optim.Optimizer):
    """Steps matrices [M, N]; the same numbers as torch's with ``adjust_lr_fn="match_rms_adamw"``, less its rounding."""

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"Muon takes matrices; a parameter has the shape {tuple(matrix.shape)}")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Nesterov momentum, orthogonalised, after decoupled weight decay."""
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
            updates.append(update.full_tensor() if isinstance(update, DTensor) else update)  # a part has other ones
        scale = UPDATE_RMS * math.sqrt(max(matrices[0].shape))
        for matrix, update in zip(matrices, orthogonalise(torch.stack(updates)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(part_of(update, matrix), alpha=-lr * scale)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Each of ``matrices`` [K, M, N] with its singular values brought near 1 by Newton-Schulz, in its own precision."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)  # singular values of at most 1
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
