"""Ranks and what they share. Everything works in a single process, where it does nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

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


def synchronize_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether passes of a ``replicate``d ``module`` from now on average its gradients, or only add up this rank's.

    Of one in parts they always do: a rank has no room for all of them.
    """
    from torch.distributed._composable.replicate import DDP

    if isinstance(module, DDP):
        module.set_requires_gradient_sync(wanted)


def shard(module: Module, blocks: nn.ModuleList, dtype: torch.dtype) -> Module:
    """Keep a part of every weight on each rank, in place (FSDP2): a block's whole ones exist while it is at work.

    Blocks are fetched and multiplied in ``dtype``; masters, gradients and their average stay float32, and so does what
    is outside of the blocks.
    """
    if world_size() > 1:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # What a model returns is read, never written.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        # What a block is given keeps its type: the times' embedding must not be rounded.
        policy = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(module)
    return module


def whole(value: Any) -> Any:
    """``value``, nested containers of tensors, with every sharded tensor put together on the CPU; every rank must ask.

    The result is rank 0's; the others get None in the place of what was sharded.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if is_main() else None
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of ``value`` where ``like`` is sharded; every rank holds all of ``value``."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def from_main(value: str | None) -> str | None:
    """Rank 0's ``value``."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum of every rank's ``value``."""
    summed = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def weight_of(count: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """What a mean over ``count`` of the ``held`` items of a rank is worth in the global mean, after gradients are
    averaged over ranks."""
    return count * world_size() / total(held).clamp(min=1)


def mean(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Average of every rank's scalars, in one message; float64 so that one rank and two agree to rounding."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    if world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= world_size()
    return dict(zip(values, stacked.tolist(), strict=True))
