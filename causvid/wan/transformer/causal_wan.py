"""Define the causal Wan transformer, with block-causal attention, one timestep per frame and a KV cache.

The causal and the bidirectional transformer have the same parameters, so each can load the state dict of the other.
In the shapes, B is the batch size, C the number of channels, F of latent frames, P of tokens per latent frame, L of
prompt tokens; H and W are the size in latent pixels, and D is the width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import apply_lora_scale

from causvid.wan.transformer.causal_attention import BlockCausalAttnProcessor, CachedTextAttnProcessor
from causvid.wan.transformer.kv_cache import KVCache, LayerCache, Slot, Window
from causvid.wan.transformer.kv_history import KeysValues, LayerHistory
from causvid.wan.transformer.lora_files import load_lora_adapter
from causvid.wan.transformer.rope import Rotary, rotary_embedding


class CausalWanTransformerBlock(WanTransformerBlock):
    """A layer of Wan with block-causal attention, and with separate modulation for each latent frame."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn1.set_processor(BlockCausalAttnProcessor())
        self.attn2.set_processor(CachedTextAttnProcessor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: Rotary,
        block_tokens: int,
        cache: LayerCache | tuple[KeysValues, ...] | None = None,
        slot: Slot | None = None,
        key_rotary: Rotary | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, KeysValues]:
        """Apply the layer.

        Args:
            hidden_states: Tokens [B, F P, D].
            encoder_hidden_states: Embedded prompt [B, L, D].
            temb: Modulation [B, F, 6, D].
            rotary_emb: Rotary table for the tokens.
            block_tokens: Number of tokens in a block.
            cache: KV cache of this layer, or the earlier blocks in its history; the tokens are then one block. None =
                the tokens are all blocks of a video.
            slot: Position of the block in ``cache``.
            key_rotary: Rotary table for the keys in ``cache``; None = the cache contains rotated keys.

        Returns:
            The tokens [B, F P, D]. If ``cache`` is a tuple, also the keys and values of the block.
        """
        frames = temb.shape[1]
        rows = (self.scale_shift_table + temb.float()).unsqueeze(2).unbind(3)  # six tensors [B, F, 1, D]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows

        x = hidden_states.float()
        normed = _modulate(self.norm1(x), scale, shift, frames).type_as(hidden_states)
        attended = self.attn1(
            normed, None, None, rotary_emb, block_tokens=block_tokens, cache=cache, slot=slot, key_rotary=key_rotary
        )
        attended, block = attended if isinstance(cache, tuple) else (attended, None)
        hidden_states = (x + _gate(attended, gate, frames)).type_as(hidden_states)

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        text_cache = None if isinstance(cache, tuple) else cache
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, cache=text_cache)

        x = hidden_states.float()
        normed = _modulate(self.norm3(x), ffn_scale, ffn_shift, frames).type_as(hidden_states)
        hidden_states = (x + _gate(self.ffn(normed).float(), ffn_gate, frames)).type_as(hidden_states)
        return hidden_states if block is None else (hidden_states, block)


class CausalWanTransformer3DModel(WanTransformer3DModel):
    """The causal Wan transformer. The latent frames of a block attend to their block and to all earlier blocks."""

    __module__ = "causvid.models.causal_wan"  # diffusers writes this name into the model_index.json of a pipeline

    _no_split_modules = ["CausalWanTransformerBlock"]
    _repeated_blocks = ["CausalWanTransformerBlock"]
    _cp_plan = None
    load_lora_adapter = load_lora_adapter

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        frames_per_block: int = 3,
    ) -> None:
        if patch_size[0] != 1:
            raise ValueError(
                f"patch_size is {patch_size}; a causal transformer needs one latent frame per patch in time"
            )
        if image_dim is not None or added_kv_proj_dim is not None:
            raise ValueError("image_dim and added_kv_proj_dim must be null: the causal transformer is text-to-video")
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            rope_max_seq_len=rope_max_seq_len,
        )
        dim = num_attention_heads * attention_head_dim
        self.blocks = torch.nn.ModuleList(
            CausalWanTransformerBlock(dim, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps)
            for _ in range(num_layers)
        )

    def make_kv_cache(
        self, *, batch_size: int, num_frames: int, height: int, width: int, sink_frames: int | None = None
    ) -> KVCache:
        """Create a KV cache.

        Args:
            batch_size: Number of videos.
            num_frames: Number of latent frames in the cache.
            height: Height in latent pixels.
            width: Width in latent pixels.
            sink_frames: Number of first latent frames that a cache for endless videos always keeps, besides the latest
                frames; a multiple of ``frames_per_block``, or 0. None = the cache contains one video of ``num_frames``,
                and a later block raises ValueError.
        """
        per_block = self.config.frames_per_block
        return KVCache.allocate(
            layers=len(self.blocks),
            batch=batch_size,
            frames=num_frames,
            frame_tokens=self._frame_tokens(height, width),
            heads=self.config.num_attention_heads,
            head_dim=self.config.attention_head_dim,
            like=self.patch_embedding.weight,
            window=None if sink_frames is None else Window(frames=num_frames, sink=sink_frames, block=per_block),
        )

    def make_kv_history(self, *, height: int, width: int) -> KVCache:
        """Create the KV cache of a training rollout, for one batch of videos.

        Gradients flow through the cache to earlier blocks, except blocks that were written under ``torch.no_grad``.

        Args:
            height: Height in latent pixels.
            width: Width in latent pixels.
        """
        return KVCache([LayerHistory() for _ in self.blocks], self._frame_tokens(height, width), window=None)

    def set_attention_backend(self, backend: str) -> None:
        """Select an attention backend of diffusers. The backend "flex" applies to block-causal attention only.

        The method of diffusers also sets the default backend of the process. For "flex", this method restores the
        default: without a mask and without compilation, "flex" would make a teacher in the same process very slow.
        """
        with attention_backend() if backend.lower() == "flex" else nullcontext():  # restores the default backend
            super().set_attention_backend(backend)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        kv_cache: KVCache | None = None,
        start_frame: int = 0,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity.

        Args:
            hidden_states: Noisy latents [B, C, F, H, W] of all blocks of a video; with ``kv_cache``, of one block.
            timestep: Timestep of each frame [B, F].
            encoder_hidden_states: Prompt embeddings [B, L, text_dim].
            return_dict: Whether to return a ``Transformer2DModelOutput`` instead of a tuple.
            attention_kwargs: The key ``scale`` is the scale of the LoRA adapters, as in diffusers.
            kv_cache: Cache that the block attends to and is written into. The block replaces a cached block with the
                same start. A cache with a window needs the blocks in order. If the pass computes gradients, the cache
                must come from ``make_kv_history``.
            start_frame: First latent frame of the block in the video.

        Returns:
            The velocity [B, C, F, H, W].

        Raises:
            ValueError: ``timestep`` has a wrong shape, the frames cannot be divided into blocks or exceed the cache, or
                ``kv_cache`` comes from ``make_kv_cache`` and the pass computes gradients.
        """
        batch, _, frames, height, width = hidden_states.shape
        if timestep.shape != (batch, frames):
            raise ValueError(f"timestep has shape {tuple(timestep.shape)}; expected one per frame, {(batch, frames)}")
        block_frames = 1 if frames == 1 else self.config.frames_per_block  # an image is a block of one frame
        if kv_cache is None and frames % block_frames:
            raise ValueError(f"{frames} latent frames do not divide into blocks of {self.config.frames_per_block}")
        slot = kv_cache.slot(start_frame, frames) if kv_cache is not None else None
        first = slot.frame if slot is not None else start_frame
        seen = slot.key_frames if slot is not None else None
        rotary_emb = self._rotary((range(first, first + frames),), height, width)
        key_rotary = self._rotary(seen, height, width) if seen is not None else None
        temb, modulation, text, _ = self.condition_embedder(
            timestep.flatten(), encoder_hidden_states, None, timestep_seq_len=frames
        )
        modulation = modulation.unflatten(2, (6, -1))
        x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        block_tokens = block_frames * self._frame_tokens(height, width)
        for index, block in enumerate(self.blocks):
            cache = kv_cache.layers[index] if kv_cache is not None else None
            x = self._apply_layer(block, cache, slot, key_rotary, x, text, modulation, rotary_emb, block_tokens)
        shift, scale = (self.scale_shift_table + temb.unsqueeze(2)).unsqueeze(2).unbind(3)  # two tensors [B, F, 1, D]
        x = _modulate(self.norm_out(x.float()), scale, shift, frames).type_as(x)
        sample = self._unpatchify(self.proj_out(x), frames, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _apply_layer(
        self,
        layer: torch.nn.Module,
        cache: LayerCache | LayerHistory | None,
        slot: Slot | None,
        key_rotary: Rotary | None,
        *arguments: Any,
    ) -> torch.Tensor:
        """Apply a layer to ``arguments``, the first arguments of its forward, and update its ``cache``."""
        known: LayerCache | LayerHistory | tuple[KeysValues, ...] | None = cache
        if isinstance(cache, LayerHistory):
            assert slot is not None
            known = cache.earlier(slot)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            result = self._gradient_checkpointing_func(layer, *arguments, known, slot, key_rotary)
        else:
            result = layer(*arguments, known, slot, key_rotary)
        if isinstance(cache, LayerHistory):
            assert slot is not None
            result, cache.blocks[slot.start] = result
        return result

    def _rotary(self, frames: Sequence[range], height: int, width: int) -> Rotary:
        rows, columns = height // self._patch(1), width // self._patch(2)
        return rotary_embedding(self.rope, frames=frames, height=rows, width=columns)

    def _patch(self, axis: int) -> int:
        return int(self.config.patch_size[axis])

    def _frame_tokens(self, height: int, width: int) -> int:
        return (height // self._patch(1)) * (width // self._patch(2))

    def _unpatchify(self, x: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
        p_h, p_w = self._patch(1), self._patch(2)
        x = x.reshape(len(x), frames, height // p_h, width // p_w, p_h, p_w, -1)
        x = x.permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(len(x), -1, frames, height, width)


def _modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, frames: int) -> torch.Tensor:
    return (x.unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2)


def _gate(x: torch.Tensor, gate: torch.Tensor, frames: int) -> torch.Tensor:
    return (x.unflatten(1, (frames, -1)) * gate).flatten(1, 2)
