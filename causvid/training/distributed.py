"""Communicate between the ranks of a training. In a single process, the functions do not communicate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

Module = TypeVar("Module", bound=nn.Module)


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0, which writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait until all ranks have called this function."""
    if dist.is_initialized():
        dist.barrier()


def share_of(batch: int) -> range:
    """Return the positions of this rank's samples in a batch. Raises ValueError if ranks cannot have equal numbers."""
    if batch % world_size():
        raise ValueError(
            f"the batch of {batch} does not divide over {world_size()} workers; change batch_size or compute.workers"
        )
    size = batch // world_size()
    return range(rank() * size, (rank() + 1) * size)


def replicate(module: Module, *, unused_parameters: bool = False) -> Module:
    """Replicate ``module`` on all ranks, in place (PyTorch's DDP). The backward pass averages the gradients.

    Args:
        module: The module, with the same weights on all ranks.
        unused_parameters: Whether a forward pass may use only some of the parameters.
    """
    if world_size() > 1:
        from torch.distributed._composable.replicate import replicate as composable_ddp

        # PyTorch prints this warning for 1x1 kernels, but the strides of 1x1 kernels have no effect.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        composable_ddp(module, find_unused_parameters=unused_parameters)
    return module


def synchronize_gradients(module: nn.Module, wanted: bool) -> None:
    """Choose whether later backward passes of a replicated ``module`` average the gradients over the ranks.

    If not, each rank only accumulates its own gradients. The gradients of a sharded module are averaged after each
    micro-batch, so that a rank stores only its shards between micro-batches.
    """
    from torch.distributed._composable.replicate import DDP

    if isinstance(module, DDP):
        module.set_requires_gradient_sync(wanted)


def shard(module: Module, blocks: nn.ModuleList, dtype: torch.dtype) -> Module:
    """Shard the weights of ``module`` over the ranks, in place (FSDP2). A block is only gathered while it is used.

    Args:
        module: The module, with the same float32 weights on all ranks.
        blocks: Parts of ``module`` that are gathered one after another.
        dtype: Data type in which blocks are gathered and computed. Shards, gradients and the weights outside of
            ``blocks`` remain float32.
    """
    if world_size() > 1:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # The warning concerns code that changes outputs in place. This project never changes outputs in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        # The inputs of a block are not cast, because the timestep embedding must not be rounded.
        policy = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(module)
    return module


def whole(value: Any) -> Any:
    """Gather every sharded tensor in nested containers on the CPU of rank 0. All ranks must call this function.

    ``torch.distributed.checkpoint.state_dict`` cannot gather the state of Muon, because the parameters of Muon are
    views of a module's parameters.

    Returns:
        On rank 0, the containers with gathered tensors. On other ranks, None replaces each sharded tensor.
    """

    def gathered(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        full = leaf.full_tensor()
        return full.cpu() if is_main() else None

    return tree_map(gathered, value)


def whole_weights(module: nn.Module, *, frozen: bool) -> dict[str, Any]:
    """Gather the weights and buffers of a module on the CPU of rank 0. All ranks must call this function.

    Args:
        module: A module, which may be sharded or replicated.
        frozen: Whether to include frozen weights.

    Returns:
        The state dict of the module on rank 0; an empty dict on other ranks.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not frozen)
    return get_model_state_dict(module, options=options)


def load_weights(module: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict from ``whole_weights``, which all ranks must pass. Frozen weights may be missing."""
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    options = StateDictOptions(full_state_dict=True, strict=False)
    keys = set_model_state_dict(module, state, options=options)
    assert not keys.unexpected_keys, keys
    assert not trained.intersection(keys.missing_keys), keys


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard the full tensor ``value`` in the same way as the tensor ``like``; unchanged if ``like`` is not sharded."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def from_main(value: str | None) -> str | None:
    """Return the ``value`` of rank 0 on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of ``value`` over all ranks, without gradient."""
    summed = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def weight_of(count: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """Return the weight with which a mean over some items of this rank enters the mean over the items of all ranks.

    The weight includes the number of ranks as a factor, because gradients are averaged over the ranks later.

    Args:
        count: Number of items in the mean of this rank.
        held: Number of all items of this rank.
    """
    return count * world_size() / total(held).clamp(min=1)


def mean(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the means of scalars over all ranks. One all-reduce in float64 keeps rounding errors small."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    if world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= world_size()
    return dict(zip(values, stacked.tolist(), strict=True))
