"""Build and load Wan transformers, convert them to causal models, and prepare them for training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from causvid.compute.parallel import Checkpointing
from causvid.runtime.seeding import derive_seed
from causvid.wan.formats.weight_files import load_saved, saved_class
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel

# All operators that scaled_dot_product_attention calls on the supported devices.
ATTENTIONS = [
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}").default
    for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
]

# Maximum number of graphs of a compiled layer. In a rollout of n blocks, torch compiles a layer up to 3 n - 1 times:
# for each number of earlier blocks, with gradients, without, and without after blocks that have gradients. Above the
# limit (torch's default is 8), torch runs the layer without compilation.
MAX_GRAPHS = 256

# Names of the classes of this backbone for code in other folders.
Transformer, CausalTransformer = WanTransformer3DModel, CausalWanTransformer3DModel
# Names of the matrices in a layer: the projections of both attentions, and both matrices of the feed-forward.
LAYER_MATRICES = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def build_transformer(config: Mapping[str, Any], seed: int) -> WanTransformer3DModel:
    """Build a bidirectional transformer with random weights.

    Args:
        config: Arguments of ``WanTransformer3DModel``.
        seed: Seed of the weights, which depend on no other random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "transformer"))
        return WanTransformer3DModel(**config)


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    """Load the transformer in ``folder``. The config.json selects the class, causal or bidirectional.

    Args:
        folder: A folder that ``save_pretrained`` of the transformer wrote.
        dtype: Data type of the weights, except those that diffusers keeps in float32.

    Returns:
        The transformer in eval mode.

    Raises:
        ValueError: If ``folder`` contains no transformer, or if its files are incomplete or from different saves.
    """
    cls = saved_class(folder, "transformer", (WanTransformer3DModel, CausalWanTransformer3DModel))
    model: WanTransformer3DModel = load_saved(cls, folder, dtype)
    return model


def as_causal(model: WanTransformer3DModel, frames_per_block: int) -> CausalWanTransformer3DModel:
    """Return a causal transformer that shares the weights of the bidirectional ``model``."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    with init_empty_weights():
        causal = CausalWanTransformer3DModel(**{**config, "frames_per_block": frames_per_block})
    causal.load_state_dict(model.state_dict(), strict=True, assign=True)
    return causal


def load_start(folder: Path, frames_per_block: int | None) -> WanTransformer3DModel:
    """Load the transformer from which a training starts.

    Args:
        folder: Folder of the transformer, as in ``load_transformer``.
        frames_per_block: ``model.frames_per_block`` of the model in training; None = bidirectional.

    Returns:
        The transformer. A bidirectional transformer becomes a causal one if ``frames_per_block`` is a number.

    Raises:
        ValueError: ``folder`` contains no complete transformer, or a causal one whose blocks have another size.
    """
    model = load_transformer(folder)
    has = model.config.get("frames_per_block")
    if has == frames_per_block:
        return model
    if has is None and frames_per_block is not None:
        return as_causal(model, frames_per_block)
    found = f"the initial weights in {folder} are a causal model with frames_per_block {has}"
    if frames_per_block is None:
        raise ValueError(f"{found}; this training needs a bidirectional model: choose a bidirectional model as init")
    raise ValueError(
        f"{found}; model.frames_per_block is {frames_per_block}: set model.frames_per_block to {has}, or choose "
        "another init"
    )


def to_precision(model: WanTransformer3DModel, dtype: torch.dtype, *, trains: bool = False) -> WanTransformer3DModel:
    """Convert the weights of ``model`` to ``dtype`` in place, except weights that diffusers keeps in float32.

    Buffers, for example the rotary table, keep their data type.

    Args:
        model: The transformer.
        dtype: Data type of the weights.
        trains: Whether the model is trained. If true, only the frozen weights are converted.
    """
    for name, parameter in model.named_parameters():
        if not (set(name.split(".")) & set(model._keep_in_fp32_modules) or (trains and parameter.requires_grad)):
            parameter.data = parameter.data.to(dtype)
    return model


def for_training(
    model: WanTransformer3DModel, gradient_checkpointing: Checkpointing, *, compiled: bool = False
) -> WanTransformer3DModel:
    """Set ``model`` to training mode, and enable gradient checkpointing if required.

    Args:
        model: The transformer, which is changed in place.
        gradient_checkpointing: Activations that the backward pass computes again. "selective" stores the outputs of
            the attention, because in long videos attention needs most of the time of a layer but has small outputs.
            (The attention of the backend "flex" is computed again nevertheless.)
        compiled: Whether the layers will be compiled. If true, torch's limit of graphs is raised in this process.
    """
    if compiled:
        torch._dynamo.config.recompile_limit = MAX_GRAPHS
    if gradient_checkpointing != "none":
        again = partial(checkpoint, use_reentrant=False)
        if gradient_checkpointing == "selective":
            again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, ATTENTIONS))
        # Checkpointing is compiled with the layer, because it cannot recognise the attention in a compiled layer.
        model.enable_gradient_checkpointing(torch.compile(again) if compiled else again)
    return model.train()


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a weight matrix inside a block of a transformer."""
    return name.startswith("blocks.") and parameter.ndim == 2
