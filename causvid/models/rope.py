"""Rotary position embedding of a part of a video that starts at any frame."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed


def rotary_embedding(
    rope: WanRotaryPosEmbed, *, start_frame: int, frames: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each [1, frames * height * width, 1, head_dim], for tokens of frames start_frame … + frames.

    height and width in tokens. Equals diffusers' table for start_frame 0. Raises ValueError beyond the table's end.
    """
    if start_frame + frames > rope.max_seq_len:
        raise ValueError(
            f"frame {start_frame + frames} lies beyond the rotary table of {rope.max_seq_len} latent frames; "
            "restart the positions (as a long rollout does) or raise rope_max_seq_len"
        )
    parts = (rope.t_dim, rope.h_dim, rope.w_dim)
    grid = (frames, height, width)
    tables = []
    for table in (rope.freqs_cos, rope.freqs_sin):
        time, row, column = table.split(parts, dim=1)
        pieces = (
            time[start_frame : start_frame + frames].view(frames, 1, 1, -1),
            row[:height].view(1, height, 1, -1),
            column[:width].view(1, 1, width, -1),
        )
        joined = torch.cat([piece.expand(*grid, -1) for piece in pieces], dim=-1)
        tables.append(joined.reshape(1, frames * height * width, 1, -1))
    return tables[0], tables[1]


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate interleaved pairs of the last axis of ``x`` [B, tokens, heads, head_dim] in the table's float32."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)
