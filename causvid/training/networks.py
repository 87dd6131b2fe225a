"""A transformer in training on every rank: whole on each (DDP) or a part on each (FSDP2), and its weight average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from causvid.runtime.device import Precision
from causvid.runtime.distributed import is_main, replicate, shard, whole
from causvid.runtime.parallel import Compute


def averaged(model: WanTransformer3DModel, decay: float, compute: Compute) -> AveragedModel:
    """The weight average of ``model``, to be made before that is ``spread``: what is spread cannot be copied."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    if compute.shard_weights:
        copied: Any = average.module
        shard(copied, copied.blocks, torch.float32)
    return average


def spread(model: WanTransformer3DModel, compute: Compute, precision: Precision) -> WanTransformer3DModel:
    """``model`` over the ranks, in place, as ``compute`` says; frozen weights are spread in parts or not at all."""
    if compute.shard_weights:
        return shard(model, model.blocks, precision.dtype)
    return replicate(model) if any(parameter.requires_grad for parameter in model.parameters()) else model


def save_whole(model: nn.Module, folder: Path) -> None:
    """Save a diffusers model of which every rank may have a part; every rank must ask, rank 0 writes."""
    state = whole(model.state_dict())
    if is_main():
        # Sharded, a model's class is one that FSDP derived from (itself and) its own.
        kind: Any = type(model).__mro__[2] if isinstance(model, FSDPModule) else type(model)
        with torch.device("meta"):  # the weights come next
            plain = kind.from_config(model.config)
        plain.load_state_dict(state, assign=True)
        plain.save_pretrained(folder)
