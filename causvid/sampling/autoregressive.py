"""Streaming with a KV cache (CausVid algorithm 2): denoise a block in few steps, write it into the cache, go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from causvid.diffusion.schedule import ScheduleConfig
from causvid.models.causal_wan import CausalWanTransformer3DModel
from causvid.sampling.few_step import few_step
from causvid.shapes import BlockLayout


def generate_blocks(
    student: CausalWanTransformer3DModel,
    text: torch.Tensor,
    noise: torch.Tensor,
    schedule: ScheduleConfig,
    draw: Callable[[int], torch.Tensor],
    context: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the video's blocks [B, C, k, H, W], each as soon as it is final.

    text: [B, L, D]; noise: [B, C, F, H, W]; draw(k) gives fresh noise of k frames. ``context`` [B, C, n, H, W] are
    known first frames, whole blocks: they are yielded as they are and only written into the cache.
    """
    batch, _, frames, height, width = noise.shape
    layout = BlockLayout(frames=frames, frames_per_block=student.config.frames_per_block)
    known = context.shape[2] if context is not None else 0
    BlockLayout(frames=known or layout.frames_per_block, frames_per_block=layout.frames_per_block)
    cache = student.make_kv_cache(batch_size=batch, num_frames=frames, height=height, width=width)
    dtype = cache.layers[0].keys.dtype
    for start in layout.starts():
        block = slice(start, start + layout.frames_per_block)

        def velocity(x_t: torch.Tensor, timestep: torch.Tensor, start: int = start) -> torch.Tensor:
            out = student(
                x_t.to(dtype), timestep=timestep, encoder_hidden_states=text.to(dtype), return_dict=False,
                kv_cache=cache, start_frame=start,
            )  # fmt: skip
            return out[0].to(x_t.dtype)  # type: ignore[no-any-return]

        if context is not None and start < known:
            x0 = context[:, :, block]
        else:
            x0 = few_step(
                velocity, noise[:, :, block], schedule.denoising_timesteps, lambda: draw(layout.frames_per_block)
            )
        if block.stop < frames:  # a finished block is written with its clean content; nothing follows the last
            velocity(x0, torch.full((batch, layout.frames_per_block), schedule.context_timestep, device=x0.device))
        yield x0
