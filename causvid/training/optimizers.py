"""Optimizers with their learning-rate law, as one thing that steps and can be saved.

Muon orthogonalises the update of every matrix and takes matrices only, so a convolution kernel is shown to it as the
matrix [outputs, the rest]. AdamW takes what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from causvid.training.distributed import part_of
from causvid.training.muon import Muon

MUON_MOMENTUM = 0.95


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Params entry ``optimizer``. learning_rate: the peak; betas: AdamW's; grad_clip: largest gradient norm;
    warmup_steps: of linear warm-up; decay: what follows it.
    """

    kind: Literal["muon", "adamw"]
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    warmup_steps: int
    decay: Literal["cosine", "constant"]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate at ``step`` of ``steps``: linear warm-up, then constant or half a cosine down to 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.decay == "constant":
        return config.learning_rate * warm
    done = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """Steps a module's parameters. ``is_matrix`` tells which go to Muon (by name and value), when that is asked for."""

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
            fused = rest[0].device.type != "cpu" or None  # None: torch's choice, on a CPU a loop
            self.optimizers.append(
                torch.optim.AdamW(rest, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=fused)
            )

    def step(self, step: int) -> torch.Tensor:
        """Apply the gradients at training step ``step`` and clear them; returns their norm before clipping.

        Raises FloatingPointError, before any weight moves, when a gradient is not finite.
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
        """Everything the optimizers remember."""
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        for index, optimizer in enumerate(self.optimizers):
            saved, held = state[str(index)], [p for group in optimizer.param_groups for p in group["params"]]
            # Copied: what comes may lie in a file.
            moments = {
                number: {
                    name: (part_of(value, held[number]) if value.shape == held[number].shape else value).clone()
                    for name, value in entries.items()
                }
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})


def backward(loss: torch.Tensor, step: int) -> None:
    """Gradients of ``loss``. Raises FloatingPointError, before there are any, when it is not finite at ``step``."""
    if not loss.isfinite():
        raise FloatingPointError(f"step {step}: the loss is {loss.item()}; no weight was changed")
    loss.backward()


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """The weight matrices inside a transformer's blocks."""
    return name.startswith("blocks.") and parameter.ndim == 2


def is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """A VAE's convolution kernels, without the two that face the latents."""
    return name.endswith("weight") and parameter.ndim >= 4 and "quant_conv" not in name and parameter.shape[0] > 3


def _as_matrix(kernel: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[O, C, …] as [O, the rest], columns in the order of ``like``'s memory, so that of ``like`` it is a view."""
    if like.is_contiguous():
        return kernel.reshape(kernel.shape[0], -1)
    return kernel.movedim(1, -1).reshape(kernel.shape[0], -1)
