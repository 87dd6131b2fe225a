"""Convert the names of weights between Wan's own code (github.com/Wan-Video/Wan2.1), diffusers and transformers.

The transformer and VAE of diffusers and the UMT5 of transformers have the same layers as Wan's models. Only the names
differ, so a conversion changes no value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

# Map the names in Wan's transformer to the names in diffusers. A module has the parameters ".weight" and ".bias"; a
# table is a parameter.
_MODULES = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_TABLES = {"head.modulation": "scale_shift_table"}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK_MODULES = {
    **{f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm3": "norm2",  # the only LayerNorm with weights in a block, before cross-attention
    **{f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in _ATTENTION.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK_TABLES = {"modulation": "scale_shift_table"}

# Map the names in Wan's text encoder to the names in transformers, both without ".weight". The embedding and
# encoder.embed_tokens are the same weight.
_TEXT_MODULES = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_TEXT_BLOCK_MODULES = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",  # the factor to which the GELU is applied
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
# Constants of Wan's text encoder that cannot be inferred from the weights.
TEXT_ENCODER_CONSTANTS = {
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}


def rename(key: str) -> str | None:
    """Convert the name ``key`` of Wan's transformer (without ``model.``) to diffusers; None for an unknown name."""
    if key in _TABLES:
        return _TABLES[key]
    block = re.fullmatch(r"blocks\.(0|[1-9]\d*)\.(.+)", key)
    name, modules, before = (block[2], _BLOCK_MODULES, f"blocks.{block[1]}.") if block else (key, _MODULES, "")
    if block and name in _BLOCK_TABLES:
        return before + _BLOCK_TABLES[name]
    module, _, parameter = name.rpartition(".")
    if parameter not in ("weight", "bias") or module not in modules:
        return None
    return f"{before}{modules[module]}.{parameter}"


def infer_config(state: Mapping[str, torch.Tensor], *, num_attention_heads: int) -> dict[str, Any]:
    """Infer diffusers' config of a transformer from its weights ``state``, which have Wan's names.

    The number of heads cannot be inferred from the shapes. The function raises ValueError if a required key is missing,
    or if the width cannot be divided into ``num_attention_heads`` heads of an even size.
    """
    patch = _shaped(state, "patch_embedding.weight", 5)
    width, channels, *patch_size = patch
    head_dim, rest = divmod(width, num_attention_heads) if num_attention_heads > 0 else (0, 1)
    if rest or head_dim % 2:
        raise ValueError(
            f"num_attention_heads is {num_attention_heads}; it must divide the width {width} (of "
            "patch_embedding.weight) into heads of an even size"
        )
    patch_elements = patch_size[0] * patch_size[1] * patch_size[2]
    return {
        "patch_size": tuple(patch_size),
        "num_attention_heads": num_attention_heads,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": _shaped(state, "head.head.weight", 2)[0] // patch_elements,
        "text_dim": _shaped(state, "text_embedding.0.weight", 2)[1],
        "freq_dim": _shaped(state, "time_embedding.0.weight", 2)[1],
        "ffn_dim": _shaped(state, "blocks.0.ffn.0.weight", 2)[0],
        "num_layers": count_blocks(state),
        "cross_attn_norm": any(".norm3." in key for key in state),
        "qk_norm": "rms_norm_across_heads" if any(".norm_q." in key for key in state) else None,
    }


def transformer_names(weights: Iterable[str], blocks: int) -> dict[str, str]:
    """Map the names ``weights`` of a diffusers transformer to Wan's names. Names that Wan lacks are omitted."""
    names = {rename(key): key for key in transformer_keys(blocks)}
    return {ours: names[ours] for ours in weights if ours in names}


def count_blocks(keys: Iterable[str]) -> int:
    """Count the blocks from 0 to the first gap, so that one wrong key cannot cause a model of 10,000 layers."""
    numbers = {match[1] for key in keys if (match := re.match(r"blocks\.(\d+)\.", key))}
    return next(count for count in itertools.count() if str(count) not in numbers)


def transformer_keys(blocks: int) -> Iterator[str]:
    """Yield every key that a text-to-video Wan model can have, in the order of Wan's code."""
    both = ("weight", "bias")
    for module in (name for name in _MODULES if name != "head.head"):
        yield from (f"{module}.{part}" for part in both)
    for block in range(blocks):
        yield from (f"blocks.{block}.{table}" for table in _BLOCK_TABLES)
        yield from (f"blocks.{block}.{module}.{part}" for module in _BLOCK_MODULES for part in both)
    yield from _TABLES
    yield from (f"head.head.{part}" for part in both)


def _shaped(state: Mapping[str, torch.Tensor], key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"missing {key}, which is needed to infer the size of the model")
    shape = tuple(state[key].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{key} has shape {shape}; expected {axes} dimensions of at least 1")
    return shape


def vae_name(key: str) -> str:
    """Convert the name ``key`` of a weight in Wan's VAE to diffusers. Unknown names are returned unchanged."""
    try:
        (name,) = convert_wan_vae_to_diffusers({key: None})
    except ValueError:  # the number of a block is not an integer
        return key
    return str(name)


def text_encoder_names(layers: int) -> dict[str, str]:
    """Map the names of all weights in transformers' text encoder with ``layers`` blocks to Wan's names."""
    modules = dict(_TEXT_MODULES)
    for block in range(layers):
        modules |= {
            f"blocks.{block}.{key}": f"encoder.block.{block}.{ours}" for key, ours in _TEXT_BLOCK_MODULES.items()
        }
    return {f"{ours}.weight": f"{key}.weight" for key, ours in modules.items()}
