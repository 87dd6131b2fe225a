"""Compute block-causal self-attention, and cross-attention that caches the keys and values of a prompt.

Block-causal attention needs no mask: one call of plain attention for each block k lets the queries of block k attend to
all keys up to the end of block k. Therefore flash kernels can be used, and training works on a CPU. With the backend
"flex", one kernel computes all blocks.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention

from causvid.wan.transformer.flex_attention import block_causal_flex
from causvid.wan.transformer.kv_cache import LayerCache, Slot
from causvid.wan.transformer.kv_history import KeysValues
from causvid.wan.transformer.rope import Rotary, rotate


class BlockCausalAttnProcessor:
    """Block-causal self-attention for all blocks of a video, or for one block with a KV cache."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: Rotary | None = None,
        *,
        block_tokens: int,
        cache: LayerCache | tuple[KeysValues, ...] | None = None,
        slot: Slot | None = None,
        key_rotary: Rotary | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, KeysValues]:
        """Attend each block to itself and to all earlier blocks.

        Args:
            attn: The attention module of diffusers.
            hidden_states: Tokens [B, tokens, dim]; with ``cache``, the tokens of one block.
            encoder_hidden_states: Not used.
            attention_mask: Not used.
            rotary_emb: Rotary table for the tokens in ``hidden_states``.
            block_tokens: Number of tokens in a block.
            cache: Keys and values of earlier blocks: a cache, into which those of the current block are written, or a
                tuple from a history.
            slot: Position of the block in ``cache``.
            key_rotary: Rotary table for all keys that the block attends to; the cache then contains keys before the
                rotation. None = ``rotary_emb`` rotates the keys of the block before they enter the cache.

        Returns:
            The tokens [B, tokens, dim]. If ``cache`` is a tuple, also the keys and values of the block.
        """
        assert rotary_emb is not None
        query = rotate(_heads(attn, attn.norm_q(attn.to_q(hidden_states))), rotary_emb)
        key = _heads(attn, attn.norm_k(attn.to_k(hidden_states)))
        key = rotate(key, rotary_emb) if key_rotary is None else key
        value = _heads(attn, attn.to_v(hidden_states))
        if isinstance(cache, tuple):
            block = KeysValues(key, value)
            key, value = (torch.cat(parts, dim=1) for parts in zip(*cache, block, strict=True))
            out = self._attend(query, key, value)
        elif cache is not None:
            assert slot is not None
            key, value = cache.write(slot, key, value)
            out = self._attend(query, key if key_rotary is None else rotate(key, key_rotary), value)
        elif self._attention_backend is AttentionBackendName.FLEX:
            out = block_causal_flex(query, key, value, block_tokens)
        else:
            ends = range(block_tokens, query.shape[1] + 1, block_tokens)
            blocks = [self._attend(query[:, end - block_tokens : end], key[:, :end], value[:, :end]) for end in ends]
            out = torch.cat(blocks, dim=1)
        tokens = _project_out(attn, out.flatten(2, 3).type_as(query))
        return (tokens, block) if isinstance(cache, tuple) else tokens

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return dispatch_attention_fn(query, key, value, backend=_maskless(self._attention_backend))


class CachedTextAttnProcessor:
    """Cross-attention that computes the keys and values of the prompt once for each cache."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: None = None,
        *,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Attend ``hidden_states`` [B, tokens, dim] to the prompt [B, L, dim]."""
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        text = None if cache is None else cache.text
        if text is None:
            key = _heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states)))
            text = key, _heads(attn, attn.to_v(encoder_hidden_states))
            if cache is not None:
                cache.write_text(*text)
        out = dispatch_attention_fn(query, *text, backend=_maskless(self._attention_backend))
        return _project_out(attn, out.flatten(2, 3).type_as(query))


def _maskless(backend: AttentionBackendName | None) -> AttentionBackendName | None:
    """Return the backend for attention without a mask. FlexAttention is replaced by the process default (None)."""
    return None if backend is AttentionBackendName.FLEX else backend


def _heads(attn: WanAttention, x: torch.Tensor) -> torch.Tensor:
    """Split the last axis of ``x`` [B, tokens, dim] into heads [B, tokens, heads, head_dim]."""
    return x.unflatten(2, (attn.heads, -1))


def _project_out(attn: WanAttention, x: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = attn.to_out[1](attn.to_out[0](x))
    return projected
