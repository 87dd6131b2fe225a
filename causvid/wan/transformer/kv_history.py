"""Keys and values of finished blocks in a training rollout. Gradients can flow through them to earlier blocks.

A layer of the transformer receives the keys and values of earlier blocks as arguments, and returns those of its block.
Gradient checkpointing and FSDP2 handle them like all other inputs and outputs of the layer. A layer that is computed
again in the backward pass therefore does not change the history.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from causvid.wan.transformer.kv_cache import Slot


class KeysValues(NamedTuple):
    """Keys and values of the self-attention of one layer, for one block.

    Attributes:
        keys: Keys [B, tokens, heads, head_dim], after the rotation.
        values: Values [B, tokens, heads, head_dim].
    """

    keys: torch.Tensor
    values: torch.Tensor


class LayerHistory:
    """The keys and values of one layer.

    Unlike ``LayerCache``, the history is never changed in place: a later call with the same block replaces its tensors,
    and earlier graphs keep the old ones. Gradients therefore flow from a block to earlier blocks, except blocks that
    were written under ``torch.no_grad``.

    Attributes:
        blocks: Keys and values of the blocks, by the first token of the block.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, KeysValues] = {}

    def earlier(self, slot: Slot) -> tuple[KeysValues, ...]:
        """Return the keys and values of all blocks before ``slot``, in their order.

        Raises:
            ValueError: An earlier block is missing.
        """
        blocks = tuple(self.blocks[start] for start in sorted(self.blocks) if start < slot.start)
        tokens = sum(block.keys.shape[1] for block in blocks)
        if tokens != slot.start:
            raise ValueError(
                f"a block starts at token {slot.start}, and the history has {tokens} earlier tokens; call the model "
                "with the blocks in their order"
            )
        return blocks
