"""The causal student: diffusers' Wan transformer with block-causal attention, a time per frame, and a KV cache.

It adds no parameter: a bidirectional Wan state dict loads unchanged, and its own loads into a bidirectional one.
Shapes: B batch, C channels, F latent frames, H and W latent pixels; P tokens per frame, D width.
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
from causvid.wan.transformer.lora_files import load_lora_adapter
from causvid.wan.transformer.rope import Rotary, rotary_embedding


class CausalWanTransformerBlock(WanTransformerBlock):
    """A Wan block whose modulation is one row per frame and whose attention is block-causal."""

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
        cache: LayerCache | None = None,
        slot: Slot | None = None,
        key_rotary: Rotary | None = None,
    ) -> torch.Tensor:
        """One layer over ``hidden_states`` [B, F P, D] with modulation ``temb`` [B, F, 6, D]."""
        frames = temb.shape[1]
        rows = (self.scale_shift_table + temb.float()).unsqueeze(2).unbind(3)  # six of [B, F, 1, D]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows

        x = hidden_states.float()
        normed = _modulate(self.norm1(x), scale, shift, frames).type_as(hidden_states)
        attended = self.attn1(
            normed, None, None, rotary_emb, block_tokens=block_tokens, cache=cache, slot=slot, key_rotary=key_rotary
        )
        hidden_states = (x + _gate(attended, gate, frames)).type_as(hidden_states)

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, cache=cache)

        x = hidden_states.float()
        normed = _modulate(self.norm3(x), ffn_scale, ffn_shift, frames).type_as(hidden_states)
        return (x + _gate(self.ffn(normed).float(), ffn_gate, frames)).type_as(hidden_states)


class CausalWanTransformer3DModel(WanTransformer3DModel):
    """Block-causal Wan. ``frames_per_block`` latent frames see each other and all earlier blocks, never a later one."""

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
            raise ValueError(f"patch_size is {patch_size}; a causal student needs one latent frame per patch in time")
        if image_dim is not None or added_kv_proj_dim is not None:
            raise ValueError("image_dim and added_kv_proj_dim must be null: the causal student is text-to-video")
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
        """Memory for videos of ``num_frames`` latent frames of ``height`` x ``width`` latent pixels.

        With ``sink_frames`` (0 or whole blocks) the videos may be endless: the cache keeps that many first frames and
        the latest ones, ``num_frames`` in all. With None a block beyond ``num_frames`` raises ValueError.
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

    def set_attention_backend(self, backend: str) -> None:
        """Use diffusers' attention ``backend``; "flex": FlexAttention for block-causal attention, the rest unchanged.

        diffusers also makes a backend the process's default. Not so flex: without a mask and uncompiled it would be the
        slowest choice for a teacher beside this student.
        """
        with attention_backend() if backend.lower() == "flex" else nullcontext():  # puts the default back
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
        """Velocity [B, C, F, H, W] of ``hidden_states`` at ``timestep`` [B, F] given the prompt [B, L, text_dim].

        Without ``kv_cache`` the frames are whole blocks from the video's start, seen block-causally. With it they are
        one block at ``start_frame`` of the video: it attends to the cache and is written into it, over an earlier
        call's at the same start. A sliding cache wants the blocks in order. With gradients nothing is written; until
        their backward pass, what the block saw must stay in the cache (gradient checkpointing reads it again).
        """
        batch, _, frames, height, width = hidden_states.shape
        if timestep.shape != (batch, frames):
            raise ValueError(f"timestep has shape {tuple(timestep.shape)}; expected one per frame, {(batch, frames)}")
        block_frames = 1 if frames == 1 else self.config.frames_per_block  # a picture is a block of its own
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
            arguments = (x, text, modulation, rotary_emb, block_tokens, cache, slot, key_rotary)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, *arguments)
            else:
                x = block(*arguments)
        shift, scale = (self.scale_shift_table + temb.unsqueeze(2)).unsqueeze(2).unbind(3)  # two of [B, F, 1, D]
        x = _modulate(self.norm_out(x.float()), scale, shift, frames).type_as(x)
        sample = self._unpatchify(self.proj_out(x), frames, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

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
