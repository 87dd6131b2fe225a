"""The bidirectional Wan transformer (teacher, critic): build, load, and turn into a causal student."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from causvid.compute.parallel import Checkpointing
from causvid.runtime.seeding import derive_seed
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.weight_files import load_saved, saved_class

# What scaled_dot_product_attention runs, on whichever device.
ATTENTIONS = [
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}").default
    for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
]


def build_transformer(config: Mapping[str, Any], seed: int) -> WanTransformer3DModel:
    """A bidirectional transformer of ``config`` (diffusers' keys) with random weights that depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "transformer"))
        return WanTransformer3DModel(**config)


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    """Load the transformer saved in ``folder``: causal or bidirectional, as its config.json says.

    Args:
        folder: A diffusers folder of one model.
        dtype: Data type of the weights, apart from those that diffusers keeps in float32.

    Returns:
        The transformer, in eval mode as ``from_pretrained`` gives it.

    Raises:
        ValueError: If there is no transformer of these two classes, or if its files are incomplete or of several saves.
    """
    cls = saved_class(folder, "transformer", (WanTransformer3DModel, CausalWanTransformer3DModel))
    model: WanTransformer3DModel = load_saved(cls, folder, dtype)
    return model


def causal_student(teacher: WanTransformer3DModel, frames_per_block: int) -> CausalWanTransformer3DModel:
    """A causal student of the bidirectional ``teacher``'s weights: the same memory, not a copy."""
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    with init_empty_weights():
        student = CausalWanTransformer3DModel(**{**config, "frames_per_block": frames_per_block})
    student.load_state_dict(teacher.state_dict(), strict=True, assign=True)
    return student


def student_of(teacher: WanTransformer3DModel, frames_per_block: int | None) -> WanTransformer3DModel:
    """The ``teacher`` as a student: causal with blocks of ``frames_per_block``, None = as it is, bidirectional."""
    return teacher if frames_per_block is None else causal_student(teacher, frames_per_block)


def to_precision(model: WanTransformer3DModel, dtype: torch.dtype, *, trains: bool = False) -> WanTransformer3DModel:
    """``model`` with its weights in ``dtype``, but for what diffusers keeps in float32 when it loads one (and RoPE).

    Of one that ``trains``, the frozen ones.
    """
    for name, parameter in model.named_parameters():
        if not (set(name.split(".")) & set(model._keep_in_fp32_modules) or (trains and parameter.requires_grad)):
            parameter.data = parameter.data.to(dtype)
    return model


def for_training(
    model: WanTransformer3DModel, gradient_checkpointing: Checkpointing, *, compiled: bool = False
) -> WanTransformer3DModel:
    """``model`` in training mode, remaking its activations in the backward pass if asked to.

    selective keeps what the attentions gave: in long videos most of a layer's time, and little of what it makes. The
    compiled kernel of backend flex is made again all the same. compiled: whether the layers will be.
    """
    if gradient_checkpointing != "none":
        again = partial(checkpoint, use_reentrant=False)
        if gradient_checkpointing == "selective":
            again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, ATTENTIONS))
        # From outside of a compiled layer nobody can tell its attention from the rest.
        model.enable_gradient_checkpointing(torch.compile(again) if compiled else again)
    return model.train()
