"""What the causal student remembers of finished blocks: keys and values, allocated once. For inference only."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class LayerCache:
    """One layer's memory: self-attention keys and values [B, tokens, heads, head_dim], and the prompt's."""

    keys: torch.Tensor
    values: torch.Tensor
    text: tuple[torch.Tensor, torch.Tensor] | None = None

    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a block's keys and values at token ``start`` (over what was there) and return all up to its end.

        Raises ValueError when the block does not fit.
        """
        end = start + keys.shape[1]
        if end > self.keys.shape[1] or keys.shape[0] != self.keys.shape[0]:
            raise ValueError(
                f"tokens {start}…{end} of a batch of {keys.shape[0]} do not fit a KV cache of "
                f"{self.keys.shape[1]} tokens and a batch of {self.keys.shape[0]}; make the cache for this video"
            )
        self.keys[:, start:end] = keys
        self.values[:, start:end] = values
        return self.keys[:, :end], self.values[:, :end]


@dataclass
class KVCache:
    """The memory of all layers for one batch of videos."""

    layers: list[LayerCache] = field(default_factory=list)

    @classmethod
    def allocate(
        cls, *, layers: int, batch: int, tokens: int, heads: int, head_dim: int, like: torch.Tensor
    ) -> KVCache:
        """Empty memory with the dtype and device of ``like``."""
        size = (batch, tokens, heads, head_dim)
        return cls([LayerCache(like.new_zeros(size), like.new_zeros(size)) for _ in range(layers)])

    def reset(self) -> None:
        """Forget the prompt; blocks are simply overwritten from the start."""
        for layer in self.layers:
            layer.text = None
