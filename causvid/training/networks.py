"""A transformer in training on every rank: whole on each (DDP) or a part on each (FSDP2), and its weight average.

Weights come from a file that the ranks of a machine read as one piece of memory; none copies them on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from causvid.models.wan import to_precision
from causvid.record import TrainingRecord, write_record
from causvid.runtime import device as devices
from causvid.runtime.distributed import is_main, part_of, replicate, shard, whole, world_size
from causvid.runtime.parallel import Compute


def averaged(model: WanTransformer3DModel, decay: float, compute: Compute) -> AveragedModel:
    """The weight average of ``model``, to be made before that is ``spread``: what is spread cannot be copied."""
    law = get_ema_multi_avg_fn(decay)
    if not _in_parts(compute):
        return AveragedModel(model.to(devices.pick()), multi_avg_fn=law)
    average = AveragedModel(_empty(model), multi_avg_fn=law)
    copied: Any = average.module
    copied.load_state_dict(model.state_dict(), assign=True)  # the model's own, until this rank's parts are cut out
    shard(copied, copied.blocks, torch.float32)
    return average


def spread(model: WanTransformer3DModel, compute: Compute, precision: devices.Precision) -> WanTransformer3DModel:
    """``model`` over the ranks' devices, in place, as ``compute`` says.

    Where they are whole on each, frozen weights are kept in ``precision``.
    """
    if compute.compile:
        model.compile_repeated_blocks()
    if _in_parts(compute):
        return shard(model, model.blocks, precision.dtype)
    to_precision(model.to(devices.pick()), precision.dtype, trains=True)
    return replicate(model) if any(parameter.requires_grad for parameter in model.parameters()) else model


class Trained:
    """The weights of ``model`` that train, as a part of a checkpoint: the frozen ones are in a file already."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Them by name."""
        return {name: weight.detach() for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of ``state_dict``; of whole weights every rank takes its parts."""
        for name, weight in self.weights.items():
            weight.copy_(part_of(state[name].to(weight.device), weight))


def save_whole(model: nn.Module, folder: Path, record: TrainingRecord) -> None:
    """Save a model in diffusers' format, and its training record.

    The model may be sharded over the ranks. All ranks must call this function; rank 0 writes.
    """
    state = whole(model.state_dict())
    if is_main():
        plain = _empty(model)
        plain.load_state_dict(state, assign=True)
        plain.save_pretrained(folder)
        write_record(record, folder)


def _in_parts(compute: Compute) -> bool:
    return compute.shard_weights and world_size() > 1


def _empty(model: nn.Module) -> Any:
    """A diffusers model like ``model``, of which every rank may have a part, whose weights are yet to come."""
    # Sharded, a model's class is one that FSDP derived from (itself and) its own.
    kind: Any = type(model).__mro__[2] if isinstance(model, FSDPModule) else type(model)
    with init_empty_weights():
        return kind.from_config(model.config)
