"""Block-causal attention as one FlexAttention kernel: tiles that nobody may see are skipped, no S x S mask is built.

Worth it on a GPU for long training clips; ``model.set_attention_backend("flex")`` chooses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TILE = 128  # tokens; the kernel's granularity


def block_causal_flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block_tokens: int) -> torch.Tensor:
    """Attention [B, tokens, heads, head_dim] of each block of ``block_tokens`` to itself and what came before it.

    Compiled on a GPU. On a CPU it is torch's slow reference, without gradients.
    """
    mask = block_mask(query.shape[1], block_tokens, query.device)
    # Under autocast normed queries and keys are float32 and values are not; this kernel, unlike others, does not cast.
    query, key, value = (x.type_as(value).transpose(1, 2) for x in (query, key, value))
    attend = _kernel(compiled=query.device.type != "cpu")
    out = attend(query, key, value, block_mask=mask)
    return out.transpose(1, 2)


@cache
def block_mask(tokens: int, block_tokens: int, device: torch.device) -> BlockMask:
    """Which tiles of ``tokens`` x ``tokens`` scores a kernel computes, made from tiles alone.

    A tile is full when its first query sees its last key, partial when only its last query sees its first key. Tiles
    over the end are never full, as the kernel has to look where tokens stop. Equals torch's create_block_mask, which
    goes through all tokens x tokens pairs.
    """
    first = torch.arange(0, tokens, TILE, device=device)
    last = first + TILE - 1
    inside = last < tokens
    reached = last.clamp(max=tokens - 1) // block_tokens
    seen = first[None, :] // block_tokens <= reached[:, None]
    full = (last[None, :] // block_tokens <= first[:, None] // block_tokens) & inside[None, :] & inside[:, None]

    def mask_mod(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key // block_tokens <= query // block_tokens

    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~full), *_ordered(full), BLOCK_SIZE=TILE, mask_mod=mask_mod, seq_lengths=(tokens, tokens)
    )


def _ordered(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many ``tiles`` [rows, columns] of each row are meant, and their columns first; both with [1, 1] in front."""
    count = tiles.sum(dim=1, dtype=torch.int32)
    columns = tiles.int().argsort(dim=1, descending=True, stable=True).int()
    return count[None, None], columns[None, None]


@cache
def _kernel(*, compiled: bool) -> Callable[..., torch.Tensor]:
    # Whole or not at all: what falls back to the reference would build tokens x tokens scores.
    kernel: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True) if compiled else flex_attention
    return kernel  # type: ignore[no-any-return]
