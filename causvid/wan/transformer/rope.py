"""Compute rotary position embeddings for any latent frames of a video, in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each [1, tokens, 1, head_dim]


def rotary_embedding(rope: WanRotaryPosEmbed, *, frames: Sequence[range], height: int, width: int) -> Rotary:
    """Return the rotary table for the tokens of the latent frames ``frames``.

    Args:
        rope: The module of diffusers. For the first frames of a video, this function returns the same table as the
            module.
        frames: Positions of the latent frames, in the order of their tokens.
        height: Number of token rows in a frame.
        width: Number of token columns in a frame.

    Raises:
        ValueError: A position is beyond the end of the table.
    """
    last = max(run.stop for run in frames if run)
    if last > rope.max_seq_len:
        raise ValueError(
            f"frame {last} is beyond the rotary table of {rope.max_seq_len} latent frames; restart the positions "
            "(as a long rollout does), slide a window (sink_frames of the KV cache) or raise rope_max_seq_len"
        )
    for name, size in (("rows", height), ("columns", width)):
        if size > rope.max_seq_len:
            raise ValueError(
                f"{size} {name} of tokens do not fit the rotary table of {rope.max_seq_len}; use a smaller video"
            )
    parts = (rope.t_dim, rope.h_dim, rope.w_dim)
    count = sum(map(len, frames))
    grid = (count, height, width)
    tables = []
    for table in (rope.freqs_cos, rope.freqs_sin):
        time, row, column = table.split(parts, dim=1)
        pieces = (
            torch.cat([time[run.start : run.stop] for run in frames]).view(count, 1, 1, -1),
            row[:height].view(1, height, 1, -1),
            column[:width].view(1, 1, width, -1),
        )
        joined = torch.cat([piece.expand(*grid, -1) for piece in pieces], dim=-1)
        tables.append(joined.reshape(1, count * height * width, 1, -1))
    return tables[0], tables[1]


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate adjacent pairs in the last axis of ``x`` [B, tokens, heads, head_dim]. The table is in float32."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)
