"""Compute the cost of Wan's models from their configs: weights, FLOPs, bytes of the KV cache and of activations.

A multiply-add counts as two FLOPs, in matrix products, convolutions and attention scores. Norms, activations and
optimizer steps are not counted. N is the number of tokens, d the width of the transformer. The formulas are those of
the Wan models in diffusers; a test compares them with torch's FlopCounterMode, which counts during a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from causvid import params
from causvid.compute.parallel import Checkpointing
from causvid.costs import Flops
from causvid.runtime.shapes import LatentShape, VideoShape

# Values per token that a layer stores for its backward pass: about 16 vectors of width d (norms, q, k, v, rotated q and
# k, outputs, the same vectors for cross-attention, residuals), and two vectors of width ffn_dim in the feed-forward.
KEPT_WIDTHS, KEPT_FFN = 16, 2


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Cost of diffusers' WanTransformer3DModel. The fields have the names of the config keys in ``model.transformer``.

    The class implements the protocol ``causvid.costs.TransformerCost``.
    """

    patch_size: tuple[int, int, int]
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    freq_dim: int
    ffn_dim: int
    num_layers: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Transformer:
        """Build the cost from a config. Other keys of the config do not change the cost."""
        names = [name for name in cls.__dataclass_fields__ if name in config]
        return params.build(cls, {name: config[name] for name in names}, name="model.transformer")

    @property
    def width(self) -> int:
        """Width d of the hidden states."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def parameters(self) -> int:
        """Number of weights in the embeddings, the head and all layers."""
        d, patch = self.width, math.prod(self.patch_size)
        attention = 4 * (d * d + d) + 2 * d
        layer = 2 * attention + 2 * d * self.ffn_dim + self.ffn_dim + d + 2 * d + 6 * d
        text = self.text_dim * d + d + d * d + d
        time = self.freq_dim * d + d + d * d + d + 6 * (d * d + d)
        head = 2 * d + self.out_channels * patch * (d + 1)
        return self.num_layers * layer + text + time + head + self.in_channels * patch * d + d

    def adapter_parameters(self, rank: int) -> int:
        """Return the number of weights in a LoRA adapter of ``rank`` for both attentions and the feed-forward."""
        d = self.width
        return self.num_layers * rank * (2 * 4 * 2 * d + 2 * (d + self.ffn_dim))

    def adapter(self, tokens: int, text_tokens: int, rank: int) -> float:
        """Return the FLOPs of one forward pass of a LoRA adapter of ``rank``.

        The adapters of the keys and values in cross-attention process prompt tokens; all others process video tokens.
        """
        text_weights = self.num_layers * rank * 2 * 2 * self.width
        return 2.0 * (tokens * (self.adapter_parameters(rank) - text_weights) + text_tokens * text_weights)

    def tokens(self, latent: LatentShape) -> int:
        """Return the number of tokens in one latent frame."""
        return latent.height // self.patch_size[1] * (latent.width // self.patch_size[2])

    def linear_per_token(self) -> int:
        """Return the FLOPs of the matrix products for one video token in all layers.

        The matrices are q, k, v and o of self-attention, q and o of cross-attention, and both of the feed-forward.
        """
        d = self.width
        return self.num_layers * 2 * (4 * d * d + 2 * d * d + 2 * d * self.ffn_dim)

    def forward(self, queries: int, pairs: int, text_tokens: int, text_cached: bool = False) -> Flops:
        """Return the FLOPs of a forward pass, with the arguments of ``causvid.costs.TransformerCost.forward``."""
        d, patch = self.width, math.prod(self.patch_size)
        ends = 2 * queries * patch * d * (self.in_channels + self.out_channels)
        text = 2 * text_tokens * (self.text_dim * d + d * d + self.num_layers * 2 * d * d)
        scores = 4 * d * self.num_layers * (pairs + queries * text_tokens)
        return Flops(queries * self.linear_per_token() + ends + (0 if text_cached else text), scores)

    def kv_cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Return the bytes of the cached keys and values for ``tokens`` tokens in all layers."""
        return 2 * self.width * self.num_layers * value_bytes * tokens

    def activation_bytes(self, tokens: int, value_bytes: int, checkpointing: Checkpointing) -> float:
        """Estimate the bytes that are stored for the backward pass of one sample.

        Full checkpointing stores the inputs of the layers. Selective checkpointing also stores the attention outputs.
        """
        everything = KEPT_WIDTHS * self.width + KEPT_FFN * self.ffn_dim
        per_layer = {"full": self.width, "selective": 3 * self.width, "none": everything}[checkpointing]
        return float(tokens * self.num_layers * per_layer * value_bytes)


class VaeCost(NamedTuple):
    """FLOPs to encode or decode the first latent frame, or each later latent frame; and the number of weights."""

    encode_first: float
    encode_next: float
    decode_first: float
    decode_next: float
    parameters: int

    def encode(self, latent_frames: int) -> float:
        """Return the FLOPs to encode a clip of ``latent_frames`` latent frames."""
        return self.encode_first + (latent_frames - 1) * self.encode_next

    def decode(self, latent_frames: int) -> float:
        """Return the FLOPs to decode a clip of ``latent_frames`` latent frames."""
        return self.decode_first + (latent_frames - 1) * self.decode_next


def vae_cost(config: Mapping[str, Any], video: VideoShape, latent: LatentShape) -> VaeCost:
    """Count the FLOPs of AutoencoderKLWan for a clip of size ``video``, with FlopCounterMode on the meta device."""
    import torch
    from diffusers import AutoencoderKLWan
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vae: Any = AutoencoderKLWan(**config)
    counted = []
    for frames in (1, 2):
        shown = 1 + (frames - 1) * config["scale_factor_temporal"]
        pixels = torch.empty(1, 3, shown, video.height, video.width, device="meta")
        latents = torch.empty(1, latent.channels, frames, latent.height, latent.width, device="meta")
        for run, x in ((vae.encode, pixels), (vae.decode, latents)):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run(x)
            counted.append(float(counter.get_total_flops()))
    encode_1, decode_1, encode_2, decode_2 = counted
    weights = sum(weight.numel() for weight in vae.parameters())
    return VaeCost(encode_1, encode_2 - encode_1, decode_1, decode_2 - decode_1, weights)


def text_encoder_parameters(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of all weights of UMT5's encoder, and of the weights in matrices that multiply every token."""
    d, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    layer = 4 * d * inner + 3 * d * config["d_ff"]
    small = 2 * d + config["num_heads"] * config.get("relative_attention_num_buckets", 32)
    every_token = config["num_layers"] * layer
    return every_token + config["num_layers"] * small + d + config.get("vocab_size", 0) * d, every_token
