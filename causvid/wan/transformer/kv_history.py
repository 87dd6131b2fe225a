"""Keys and values of finished blocks together with their graphs, for training through a rollout."""

from __future__ import annotations

import torch

from causvid.wan.transformer.kv_cache import Slot


class LayerHistory:
    """The keys and values of one layer, in one pair of tensors per block.

    Unlike ``LayerCache``, the history is never changed in place: a later call with the same block replaces its tensors,
    and earlier graphs keep the old ones. Gradients therefore flow from a block to all earlier blocks. This class is no
    dataclass, because FSDP2 copies dataclasses among the arguments of a module, and a block would enter the copy.

    Attributes:
        blocks: Keys and values of the self-attention [B, tokens, heads, head_dim], by the first token of the block.
        text: Keys and values of the cross-attention [B, L, heads, head_dim]; None until they are computed.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.text: tuple[torch.Tensor, torch.Tensor] | None = None

    def write(self, slot: Slot, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a block, and return all keys and values that the block attends to: earlier blocks, then the block."""
        self.blocks[slot.start] = keys, values
        starts = sorted(start for start in self.blocks if start <= slot.start)
        keys, values = (torch.cat(parts, dim=1) for parts in zip(*(self.blocks[it] for it in starts), strict=True))
        assert keys.shape[1] == slot.seen, f"blocks {starts} have {keys.shape[1]} tokens, not {slot.seen}"
        return keys, values
