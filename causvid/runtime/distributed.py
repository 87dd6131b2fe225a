"""Ranks and what they share. Everything works in a single process, where it does nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import distributed as dist
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def rank() -> int:
    """This process among the training processes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()


def share_of(batch: int) -> range:
    """This rank's part of a global batch, as global positions. Raises ValueError when it does not divide evenly."""
    if batch % world_size():
        raise ValueError(
            f"the batch of {batch} does not divide over {world_size()} workers; change batch_size or compute.workers"
        )
    size = batch // world_size()
    return range(rank() * size, (rank() + 1) * size)


def replicate(module: Module, *, unused_parameters: bool = False) -> Module:
    """Keep ``module`` equal on all ranks: gradients are averaged during backward (PyTorch DDP, applied in place).

    unused_parameters: whether a forward pass may leave some of them out.
    """
    if world_size() > 1:
        from torch.distributed._composable.replicate import replicate as composable_ddp

        # True of 1x1 kernels, whose strides mean nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        composable_ddp(module, find_unused_parameters=unused_parameters)
    return module


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum of every rank's ``value``."""
    summed = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def weight_of(count: torch.Tensor) -> torch.Tensor:
    """What a rank's mean over its own ``count`` items is worth in the global mean, after gradients are averaged."""
    return count * world_size() / total(count).clamp(min=1)


def mean(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Average of every rank's scalars, in one message; float64 so that one rank and two agree to rounding."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    if world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= world_size()
    return dict(zip(values, stacked.tolist(), strict=True))
