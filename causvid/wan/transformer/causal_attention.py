"""Block-causal self-attention, and cross-attention that computes the keys and values of a prompt once.

Block-causal attention needs no mask: the queries of block k attend to the keys up to the end of block k, by one call of
plain attention for each block. Flash kernels can be used, and training works on a CPU. With the backend "flex", one
kernel computes all blocks.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention

from causvid.wan.transformer.flex_attention import block_causal_flex
from causvid.wan.transformer.kv_cache import LayerCache, Slot
from causvid.wan.transformer.rope import Rotary, rotate


class BlockCausalAttnProcessor:
    """Self-attention over [B, tokens, dim]: of all blocks of a video, or of one block over a cache."""

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
        cache: LayerCache | None = None,
        slot: Slot | None = None,
        key_rotary: Rotary | None = None,
    ) -> torch.Tensor:
        """Attend each block to itself and to all earlier blocks.

        Args:
            attn: The attention module of diffusers.
            hidden_states: Tokens [B, tokens, dim]; with ``cache``, the tokens of one block.
            encoder_hidden_states: Not used.
            attention_mask: Not used.
            rotary_emb: Rotary table of ``hidden_states``.
            block_tokens: Tokens of a block.
            cache: Keys and values of earlier blocks; the block is written into it.
            slot: Place of the block in ``cache``.
            key_rotary: Rotary table of all keys that the block attends to. With it, the cache contains keys before the
                rotation; without it, keys are rotated by ``rotary_emb`` before they are written.
        """
        assert rotary_emb is not None
        query = rotate(_heads(attn, attn.norm_q(attn.to_q(hidden_states))), rotary_emb)
        key = _heads(attn, attn.norm_k(attn.to_k(hidden_states)))
        key = rotate(key, rotary_emb) if key_rotary is None else key
        value = _heads(attn, attn.to_v(hidden_states))
        if cache is not None:
            assert slot is not None
            key, value = cache.write(slot, key, value)
            out = self._attend(query, key if key_rotary is None else rotate(key, key_rotary), value)
        elif self._attention_backend is AttentionBackendName.FLEX:
            out = block_causal_flex(query, key, value, block_tokens)
        else:
            ends = range(block_tokens, query.shape[1] + 1, block_tokens)
            blocks = [self._attend(query[:, end - block_tokens : end], key[:, :end], value[:, :end]) for end in ends]
            out = torch.cat(blocks, dim=1)
        return _project_out(attn, out.flatten(2, 3).type_as(query))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return dispatch_attention_fn(query, key, value, backend=_maskless(self._attention_backend))


class CachedTextAttnProcessor:
    """Cross-attention that computes the keys and values of the prompt once for each cache.

    With gradients they are computed in every forward pass, so that each pass has a separate graph.
    """

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
        text = None if cache is None or torch.is_grad_enabled() else cache.text
        if text is None:
            key = _heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states)))
            text = key, _heads(attn, attn.to_v(encoder_hidden_states))
            if cache is not None and not torch.is_grad_enabled():
                cache.text = text
        out = dispatch_attention_fn(query, *text, backend=_maskless(self._attention_backend))
        return _project_out(attn, out.flatten(2, 3).type_as(query))


def _maskless(backend: AttentionBackendName | None) -> AttentionBackendName | None:
    """Return the backend for attention without a mask: None, the default of the process, instead of FlexAttention."""
    return None if backend is AttentionBackendName.FLEX else backend


def _heads(attn: WanAttention, x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` [B, tokens, dim] as [B, tokens, heads, head_dim]."""
    return x.unflatten(2, (attn.heads, -1))


def _project_out(attn: WanAttention, x: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = attn.to_out[1](attn.to_out[0](x))
    return projected
