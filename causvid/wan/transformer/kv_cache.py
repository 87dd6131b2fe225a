"""What the causal student remembers of finished blocks: keys and values, allocated once.

A plain cache holds one video from its first frame to its last. A cache with a window serves endless video: it keeps the
first frames (the sink; StreamingLLM, arXiv 2309.17453) and, in a ring, the latest blocks. No data is moved: the newest
block overwrites the oldest. A key's position then depends on how far the video has come, so it is rotated when read.

A pass with gradients reads the memory and leaves it as it is: what is remembered never has a gradient, and nothing that
a backward pass needs is overwritten. Only passes without gradients write.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class LayerCache:
    """One layer's memory: self-attention keys and values [B, tokens, heads, head_dim], and the prompt's."""

    keys: torch.Tensor
    values: torch.Tensor
    text: tuple[torch.Tensor, torch.Tensor] | None = None

    def write(self, slot: Slot, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a block's keys and values into its ``slot`` (over what was there) and return all that the block sees.

        Keys and values with a gradient are not written: what the block sees is then a copy of the memory with them in
        their slot. Raises ValueError when the block does not fit.
        """
        end = slot.start + keys.shape[1]
        if end > self.keys.shape[1] or keys.shape[0] != self.keys.shape[0]:
            raise ValueError(
                f"tokens {slot.start}…{end} of a batch of {keys.shape[0]} do not fit a KV cache of "
                f"{self.keys.shape[1]} tokens and a batch of {self.keys.shape[0]}; make the cache for this video, or "
                "with sink_frames for an endless one"
            )
        if keys.requires_grad or values.requires_grad:
            before, after = slice(slot.start), slice(end, slot.seen)
            return (
                torch.cat([self.keys[:, before], keys, self.keys[:, after]], dim=1),
                torch.cat([self.values[:, before], values, self.values[:, after]], dim=1),
            )
        self.keys[:, slot.start : end] = keys
        self.values[:, slot.start : end] = values
        return self.keys[:, : slot.seen], self.values[:, : slot.seen]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where a block lies in the cache and what it sees: a pure function of the frame it starts at.

    Attributes: start: its first token in the memory; seen: it sees the memory's tokens up to here; frame: the position
    of its first latent frame; key_frames: positions of the latent frames it sees, in the memory's order, or None where
    the memory holds rotated keys.
    """

    start: int
    seen: int
    frame: int
    key_frames: tuple[range, ...] | None


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a cache for endless video keeps, in latent frames: ``sink`` first ones and the latest, ``frames`` in all.

    Raises ValueError when these are no whole blocks of ``block`` frames, or leave none for the block at work.
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
        """Where the block at latent frame ``start`` of the video goes. Raises ValueError if that is no whole block.

        Until the memory is full, frames have their own positions. Then the block is always the last in the window, the
        ring's others come before it in the order of time, and the sink stays where it was.
        """
        if frames != self.block or start % self.block:
            raise ValueError(
                f"a call of {frames} latent frames starts at start_frame {start}; a sliding KV cache takes one whole "
                f"block of {self.block} at a time"
            )
        if start + frames <= self.frames:
            seen = start + frames
            return Slot(start=start * frame_tokens, seen=seen * frame_tokens, frame=start, key_frames=(range(seen),))
        newest = (start - self.sink) % (self.frames - self.sink) + frames  # frames of the ring up to the block's end
        oldest = self.frames - newest
        return Slot(
            start=(self.sink + newest - frames) * frame_tokens,
            seen=self.frames * frame_tokens,
            frame=self.frames - frames,
            key_frames=(range(self.sink), range(oldest, self.frames), range(self.sink, oldest)),
        )


@dataclass
class KVCache:
    """The memory of all layers for one batch of videos. ``window`` None: the whole video fits, nothing slides."""

    layers: list[LayerCache]
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
        """Empty memory with the dtype and device of ``like``."""
        size = (batch, frames * frame_tokens, heads, head_dim)

        def empty() -> torch.Tensor:
            return torch.zeros(size, dtype=like.dtype, device=like.device)  # a sharded weight's new_zeros are sharded

        memory = [LayerCache(empty(), empty()) for _ in range(layers)]
        return cls(memory, frame_tokens, window)

    def slot(self, start_frame: int, frames: int) -> Slot:
        """Where the block of ``frames`` at latent frame ``start_frame`` of the video goes."""
        if self.window is not None:
            return self.window.slot(start_frame, frames, self.frame_tokens)
        start, seen = start_frame * self.frame_tokens, (start_frame + frames) * self.frame_tokens
        return Slot(start=start, seen=seen, frame=start_frame, key_frames=None)
