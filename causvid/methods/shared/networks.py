"""Distribute transformers in training: replicate them on every rank (DDP) or shard them over the ranks (FSDP2).

The ranks of a machine map the file of the weights into shared memory. The weights are not copied before they are
distributed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from causvid.compute import device as devices
from causvid.compute.parallel import Compute
from causvid.compute.precision import Precision
from causvid.diffusion.velocity import Velocity, conditional
from causvid.record import TrainingRecord, write_record
from causvid.training.checkpoint import Stateful
from causvid.training.config import OptimizerConfig
from causvid.training.distributed import is_main, replicate, shard, synchronize_gradients, whole_weights, world_size
from causvid.training.optimizers import Optimizer
from causvid.training.run import Run
from causvid.wan.transformer.wan import Transformer, for_training, is_block_matrix, load_transformer, to_precision


class Trainee:
    """A transformer in training, with an average of its weights and an optimizer.

    Args:
        model: The transformer with its initial weights, of which some may be frozen. It is changed in place.
        run: Settings of the training.
        optimizer: Params of the optimizer.
        ema_decay: Decay of the weight average; None = no average.
    """

    def __init__(
        self,
        model: Transformer,
        run: Run[Any, Any],
        optimizer: OptimizerConfig,
        *,
        ema_decay: float | None = None,
    ) -> None:
        compute = run.compute
        # Copy, then distribute: a distributed model cannot be copied, and the optimizer needs distributed weights.
        model = for_training(model, compute.gradient_checkpointing, compiled=compute.compile)
        self.average = None if ema_decay is None else _averaged(model, ema_decay, compute)
        self.model = _distributed(model, compute, run.precision)
        self.optimizer = Optimizer(self.model, optimizer, steps=run.config.steps, is_matrix=is_block_matrix)

    @property
    def frames_per_block(self) -> int | None:
        """Latent frames in a block of a causal transformer; None = bidirectional."""
        blocks: int | None = self.model.config.get("frames_per_block")
        return blocks

    def velocity(self, text: torch.Tensor) -> Velocity:
        """Return the velocity of the model with its current weights, given prompt embeddings ``text`` [B, L, D]."""
        return conditional(self.model, text)

    def synchronize(self, wanted: bool) -> None:
        """Choose whether the next backward passes average the gradients over the ranks."""
        synchronize_gradients(self.model, wanted)

    def step(self, step: int) -> torch.Tensor:
        """Do an optimizer step with the gradients of training step ``step``, and update the weight average.

        Returns:
            The norm of the gradient before clipping, a scalar.

        Raises:
            FloatingPointError: A gradient is not finite. All weights are unchanged.
        """
        norm = self.optimizer.step(step)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    def state(self, prefix: str = "") -> dict[str, Stateful]:
        """Return the trained weights, their average and the optimizer, keyed by names that begin with ``prefix``."""
        average: dict[str, Stateful] = {} if self.average is None else {f"{prefix}average": self.average}
        return {f"{prefix}model": self.model, **average, f"{prefix}optimizer": self.optimizer}

    def export(self, folder: Path, record: TrainingRecord) -> None:
        """Save the weight average in diffusers' format with its training record. All ranks must call this method."""
        assert self.average is not None, "only a model with a weight average can be exported"
        save_whole(self.average.module, folder, record)


def load_frozen(folder: Path, run: Run[Any, Any]) -> Transformer:
    """Load a transformer with frozen weights, and distribute the weights over the ranks as in ``run.compute``.

    If every rank has all weights, they are converted to ``run.precision``.
    """
    return _distributed(load_transformer(folder).requires_grad_(False), run.compute, run.precision)


def _averaged(model: Transformer, decay: float, compute: Compute) -> AveragedModel:
    """Return a weight average of ``model``. The weights of ``model`` must not be distributed yet."""
    law = get_ema_multi_avg_fn(decay)
    if not _is_sharded(compute):
        return AveragedModel(model.to(devices.pick()), multi_avg_fn=law)
    average = AveragedModel(_empty(model), multi_avg_fn=law)
    copied: Any = average.module
    copied.load_state_dict(model.state_dict(), assign=True)  # average and model share memory until both are sharded
    shard(copied, copied.blocks, torch.float32)
    return average


def _distributed(model: Transformer, compute: Compute, precision: Precision) -> Transformer:
    """Distribute ``model`` over the devices of the ranks, in place, as in ``compute``.

    If every rank has all weights, the frozen weights are converted to ``precision``.
    """
    if compute.compile:
        model.compile_repeated_blocks()
    if _is_sharded(compute):
        return shard(model, model.blocks, precision.dtype)
    to_precision(model.to(devices.pick()), precision.dtype, trains=True)
    return replicate(model) if any(parameter.requires_grad for parameter in model.parameters()) else model


def save_whole(model: nn.Module, folder: Path, record: TrainingRecord) -> None:
    """Save a model in diffusers' format, and its training record.

    The model may be sharded over the ranks. All ranks must call this function; only rank 0 writes files.
    """
    state = whole_weights(model, frozen=True)
    if is_main():
        plain = _empty(model)
        plain.load_state_dict(state, assign=True)
        plain.save_pretrained(folder)
        write_record(record, folder)


def _is_sharded(compute: Compute) -> bool:
    return compute.shard_weights and world_size() > 1


def _empty(model: nn.Module) -> Any:
    """Return a model with the config of ``model`` (which may be sharded) and without weights, on the meta device."""
    # FSDP replaces the class of a sharded model by a class that is derived from (FSDPModule, the original class).
    kind: Any = type(model).__mro__[2] if isinstance(model, FSDPModule) else type(model)
    with init_empty_weights():
        return kind.from_config(model.config)
