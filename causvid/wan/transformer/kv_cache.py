"""The KV cache stores the keys and values of finished blocks in memory that is allocated once.

A cache without a window stores all frames of one video. A cache with a window is for endless videos. A window contains
the first frames (the sink; StreamingLLM, arXiv 2309.17453) and a ring buffer of the latest blocks, in which the newest
block overwrites the oldest block. The position of a key in the window changes during the video. Therefore keys are
stored before the rotation, and are rotated when they are read.

A ``LayerCache`` rejects keys and values that require gradients, because later blocks overwrite the cache in place, and
a backward pass could need the old values. In training rollouts, each layer has a ``LayerHistory`` instead
(``kv_history.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from causvid.wan.transformer.kv_history import LayerHistory


@dataclass
class LayerCache:
    """The KV cache of one layer.

    Attributes:
        keys: Keys of the self-attention [B, tokens, heads, head_dim].
        values: Values of the self-attention [B, tokens, heads, head_dim].
        text: Keys and values of the cross-attention [B, L, heads, head_dim]; None until they are computed.
    """

    keys: torch.Tensor
    values: torch.Tensor
    text: tuple[torch.Tensor, torch.Tensor] | None = None

    def write(self, slot: Slot, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a block into its ``slot``, and return all keys and values that the block attends to.

        Raises:
            ValueError: The block does not fit into the cache, or its keys or values require gradients.
        """
        _refuse_gradients(keys, values)
        end = slot.start + keys.shape[1]
        if end > self.keys.shape[1] or keys.shape[0] != self.keys.shape[0]:
            raise ValueError(
                f"tokens {slot.start}…{end} of a batch of {keys.shape[0]} do not fit a KV cache of "
                f"{self.keys.shape[1]} tokens and a batch of {self.keys.shape[0]}; create the cache for this video, or "
                "with sink_frames for an endless video"
            )
        self.keys[:, slot.start : end] = keys
        self.values[:, slot.start : end] = values
        return self.keys[:, : slot.seen], self.values[:, : slot.seen]

    def write_text(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the keys and values that the cross-attention computed from the prompt, for all later forward passes.

        Args:
            keys: Keys [B, L, heads, head_dim] of the L tokens of the prompt.
            values: Values of the same shape.

        Raises:
            ValueError: ``keys`` or ``values`` require gradients.
        """
        _refuse_gradients(keys, values)
        self.text = keys, values


def _refuse_gradients(keys: torch.Tensor, values: torch.Tensor) -> None:
    if keys.requires_grad or values.requires_grad:
        raise ValueError(
            "a KV cache from make_kv_cache cannot store keys or values that require gradients; call the model under "
            "torch.no_grad(), or create the cache with make_kv_history"
        )


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The position of a block in the cache, which depends only on the index of the first latent frame of the block.

    Attributes:
        start: Index of the block's first token in the cache.
        seen: Number of tokens at the start of the cache that the block attends to.
        frame: Position of the block's first latent frame in the rotary embedding.
        key_frames: Positions of the latent frames that the block attends to, in the order of the cache; None = the
            cache contains rotated keys.
    """

    start: int
    seen: int
    frame: int
    key_frames: tuple[range, ...] | None


@dataclass(frozen=True, kw_only=True)
class Window:
    """The first and the latest latent frames of an endless video, which a cache keeps.

    Attributes:
        frames: Number of latent frames in the cache, with the sink and the current block; a multiple of ``block``.
        sink: Number of first latent frames of the video that are always kept; a multiple of ``block``.
        block: Number of latent frames in a block.
    """

    frames: int
    sink: int
    block: int

    def __post_init__(self) -> None:
        if self.sink < 0 or self.sink % self.block:
            raise ValueError(f"sink_frames is {self.sink}; it must be whole blocks of {self.block} latent frames, or 0")
        if self.frames % self.block or self.frames < self.sink + self.block:
            raise ValueError(
                f"num_frames is {self.frames}; a sliding KV cache needs whole blocks of {self.block} latent frames and "
                f"at least one besides its sink: {self.sink + self.block} or more"
            )

    def slot(self, start: int, frames: int, frame_tokens: int) -> Slot:
        """Return the slot of a block.

        Until the cache is full, positions are frame indices of the video. In a full cache, the sink has the first
        positions, and the blocks of the ring follow in temporal order; the new block always has the last position.

        Args:
            start: First latent frame of the block in the video.
            frames: Number of latent frames in the block.
            frame_tokens: Number of tokens in a latent frame.

        Raises:
            ValueError: The latent frames are not exactly one block.
        """
        if frames != self.block or start % self.block:
            raise ValueError(
                f"a call of {frames} latent frames starts at start_frame {start}; a sliding KV cache takes one whole "
                f"block of {self.block} at a time"
            )
        if start + frames <= self.frames:
            seen = start + frames
            return Slot(start=start * frame_tokens, seen=seen * frame_tokens, frame=start, key_frames=(range(seen),))
        newest = (start - self.sink) % (self.frames - self.sink) + frames  # frames in the ring up to the block's end
        oldest = self.frames - newest
        return Slot(
            start=(self.sink + newest - frames) * frame_tokens,
            seen=self.frames * frame_tokens,
            frame=self.frames - frames,
            key_frames=(range(self.sink), range(oldest, self.frames), range(self.sink, oldest)),
        )


@dataclass
class KVCache:
    """The KV cache of all layers for one batch of videos.

    Attributes:
        layers: Keys and values of the layers.
        frame_tokens: Number of tokens in a latent frame.
        window: Latent frames that are kept; None = all latent frames of the video.
    """

    layers: Sequence[LayerCache | LayerHistory]
    frame_tokens: int
    window: Window | None

    @classmethod
    def allocate(
        cls,
        *,
        layers: int,
        batch: int,
        frames: int,
        frame_tokens: int,
        heads: int,
        head_dim: int,
        like: torch.Tensor,
        window: Window | None = None,
    ) -> KVCache:
        """Create an empty cache for ``frames`` latent frames, with the dtype and device of ``like``."""
        size = (batch, frames * frame_tokens, heads, head_dim)

        def empty() -> torch.Tensor:
            return torch.zeros(size, dtype=like.dtype, device=like.device)  # unlike new_zeros, never sharded

        memory = [LayerCache(empty(), empty()) for _ in range(layers)]
        return cls(memory, frame_tokens, window)

    def slot(self, start_frame: int, frames: int) -> Slot:
        """Return the slot of the block of ``frames`` latent frames that starts at ``start_frame`` of the video."""
        if self.window is not None:
            return self.window.slot(start_frame, frames, self.frame_tokens)
        start, seen = start_frame * self.frame_tokens, (start_frame + frames) * self.frame_tokens
        return Slot(start=start, seen=seen, frame=start_frame, key_frames=None)
