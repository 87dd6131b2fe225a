"""Optimize a module with Muon, AdamW or both, and with a learning rate schedule.

Muon accepts matrices only, so a convolution kernel [O, C, ...] is reshaped to a matrix [O, C ...]. AdamW updates all
other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from causvid.training.config import OptimizerConfig
from causvid.training.distributed import part_of
from causvid.training.muon import Muon

MUON_MOMENTUM = 0.95


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate at ``step``: linear warm-up, then constant or cosine decay to 0 at ``steps``."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.decay == "constant":
        return config.learning_rate * warm
    done = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """The optimizer of the trainable parameters of a module.

    Args:
        module: The module.
        config: Parameters of the optimizer.
        steps: Number of training steps, for the learning rate schedule.
        is_matrix: Function that decides from the name and value of a parameter whether Muon updates it.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        *,
        steps: int,
        is_matrix: Callable[[str, nn.Parameter], bool],
    ) -> None:
        self.config, self.steps = config, steps
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        matrices = [p for name, p in named if config.kind == "muon" and is_matrix(name, p)]
        chosen = {id(p) for p in matrices}
        self.views = [(p, nn.Parameter(_as_matrix(p.detach(), like=p))) for p in matrices]
        rest = [p for p in self.parameters if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(
                Muon(
                    [view for _, view in self.views],
                    lr=0.0,
                    weight_decay=config.weight_decay,
                    momentum=MUON_MOMENTUM,
                )
            )
        if rest:
            fused = rest[0].device.type != "cpu" or None  # None = torch's default, which is a loop on a CPU
            self.optimizers.append(
                torch.optim.AdamW(rest, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=fused)
            )

    def step(self, step: int) -> torch.Tensor:
        """Update the parameters with the gradients of training step ``step``, and clear the gradients.

        Returns:
            The norm of the gradient before clipping, a scalar.

        Raises:
            FloatingPointError: A gradient is not finite. All weights are unchanged.
        """
        try:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip, error_if_nonfinite=True)
        except RuntimeError as error:
            raise FloatingPointError(f"step {step}: the gradient is not finite; no weight was changed") from error
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        for parameter, view in self.views:
            view.grad = None if parameter.grad is None else _as_matrix(parameter.grad, like=parameter)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step, self.steps)
            optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the states of Muon and AdamW."""
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``. Its tensors are not sharded; every rank copies its own shards."""
        for index, optimizer in enumerate(self.optimizers):
            saved, held = state[str(index)], [p for group in optimizer.param_groups for p in group["params"]]
            # The tensors are cloned, because they may be mapped from a file.
            moments = {
                number: {
                    name: (part_of(value, held[number]) if value.shape == held[number].shape else value).clone()
                    for name, value in entries.items()
                }
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})


def backward(loss: torch.Tensor, step: int) -> None:
    """Compute the gradients of ``loss``. If the loss is not finite, raise FloatingPointError instead."""
    if not loss.isfinite():
        raise FloatingPointError(f"step {step}: the loss is {loss.item()}; no weight was changed")
    loss.backward()


def _as_matrix(kernel: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape [O, C, ...] to [O, C ...] with columns in the memory order of ``like``; ``like`` itself is not copied."""
    if like.is_contiguous():
        return kernel.reshape(kernel.shape[0], -1)
    return kernel.movedim(1, -1).reshape(kernel.shape[0], -1)
