"""Streaming with a KV cache (CausVid algorithm 2): denoise a block, write it into the cache, go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import Velocity, conditional, guide_halves
from causvid.runtime.shapes import BlockLayout
from causvid.sampling.few_step import few_step
from causvid.sampling.ode_solver import solve_ode
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.kv_cache import KVCache

# (a block's velocity given its past, its noise [B, C, k, H, W]) -> the block. The velocity is of as many samples as
# there are texts: with guidance 2 B, without the prompt and with it.
Denoise = Callable[[Velocity, torch.Tensor], torch.Tensor]


def generate_blocks(
    student: CausalWanTransformer3DModel,
    text: torch.Tensor,
    noise: torch.Tensor | Iterable[torch.Tensor],
    schedule: ScheduleConfig,
    draw: Callable[[int], torch.Tensor],
    context: torch.Tensor | None = None,
    *,
    window: int | None = None,
    sink: int = 0,
) -> Iterator[torch.Tensor]:
    """Yield a few-step student's blocks [B, C, k, H, W], each as soon as it is final.

    text: [B, L, D]; noise: [B, C, F, H, W], or its blocks [B, C, k, H, W] one by one, without end if you like; draw(k)
    gives fresh noise of k frames. ``context`` [B, C, n, H, W] are known first frames, whole blocks: they are yielded as
    they are and only written into the cache. A video longer than ``window`` latent frames is made in the memory of that
    many: its first ``sink`` frames and the latest ones. None: as many as the video has.
    """

    def denoise(velocity: Velocity, part: torch.Tensor) -> torch.Tensor:
        return few_step(velocity, part, schedule.denoising_timesteps, lambda: draw(part.shape[2]))

    return _block_by_block(student, text, noise, denoise, schedule, context, window, sink)


def solve_blocks(
    model: CausalWanTransformer3DModel,
    text: torch.Tensor,
    negative: torch.Tensor,
    guidance_scale: float,
    noise: torch.Tensor | Iterable[torch.Tensor],
    schedule: ScheduleConfig,
    context: torch.Tensor | None = None,
    *,
    window: int | None = None,
    sink: int = 0,
) -> Iterator[torch.Tensor]:
    """Yield a many-step causal model's blocks: each by Euler over the solver's grid, with guidance.

    negative: [1 or B, L, D]. The half without the prompt has a past of its own in the cache: the same blocks, seen
    without the prompt. guidance_scale 1 needs no such half. The rest is as in ``generate_blocks``.
    """
    sigmas = schedule.grid.sigmas(schedule.solver_steps)
    guides = guidance_scale != 1

    def denoise(velocity: Velocity, part: torch.Tensor) -> torch.Tensor:
        return solve_ode(guide_halves(velocity, guidance_scale) if guides else velocity, part, sigmas)[:, 0]

    texts = torch.cat([negative.expand_as(text), text]) if guides else text
    return _block_by_block(model, texts, noise, denoise, schedule, context, window, sink)


def _block_by_block(
    model: CausalWanTransformer3DModel,
    texts: torch.Tensor,
    noise: torch.Tensor | Iterable[torch.Tensor],
    denoise: Denoise,
    schedule: ScheduleConfig,
    context: torch.Tensor | None,
    window: int | None,
    sink: int,
) -> Iterator[torch.Tensor]:
    """The one loop; ``texts`` are as many as samples in the cache."""
    per_block = model.config.frames_per_block
    known = context.shape[2] if context is not None else 0
    BlockLayout(frames=known or per_block, frames_per_block=per_block)
    frames = noise.shape[2] if isinstance(noise, torch.Tensor) else None
    cache: KVCache | None = None
    finished: torch.Tensor | None = None
    for index, part in enumerate(_parts(noise, per_block)):
        start = index * per_block
        if cache is None:
            cache = _make_cache(model, part, len(texts), frames, window, sink)
        if finished is not None:  # once it is sure that a block follows
            _remember(model, texts, cache, start - per_block, finished, schedule)
        if context is not None and start < known:
            finished = context[:, :, start : start + per_block]
        else:
            finished = denoise(conditional(model, texts, kv_cache=cache, start_frame=start), part)
        yield finished


def rollout_with_gradient(
    student: CausalWanTransformer3DModel,
    text: torch.Tensor,
    noise: torch.Tensor,
    schedule: ScheduleConfig,
    draw: Callable[[int], torch.Tensor],
    exit_step: int,
) -> torch.Tensor:
    """The student's own video [B, C, F, H, W] as it is trained on (Self-Forcing, arXiv 2506.08009, algorithm 1).

    A block is its x0 at step ``exit_step``, counted from 0. Gradients flow through that one prediction: neither through
    the steps before it nor through the cache, into which the block is then written clean. At the last step the video is
    that of ``generate_blocks`` for the same ``noise`` and ``draw``. One latent frame, a picture, is one block.
    """
    batch, _, frames, height, width = noise.shape
    layout = BlockLayout(frames=frames, frames_per_block=1 if frames == 1 else student.config.frames_per_block)
    cache = student.make_kv_cache(batch_size=batch, num_frames=frames, height=height, width=width)
    steps = schedule.denoising_timesteps[: exit_step + 1]
    blocks: list[torch.Tensor] = []
    for start, part in zip(layout.starts(), noise.split(layout.frames_per_block, dim=2), strict=True):
        if blocks:
            _remember(student, text, cache, start - layout.frames_per_block, blocks[-1], schedule)
        velocity = conditional(student, text, kv_cache=cache, start_frame=start)
        blocks.append(few_step(velocity, part, steps, lambda: draw(layout.frames_per_block)))
    return torch.cat(blocks, dim=2)


def _parts(noise: torch.Tensor | Iterable[torch.Tensor], per_block: int) -> Iterator[torch.Tensor]:
    if isinstance(noise, torch.Tensor):
        BlockLayout(frames=noise.shape[2], frames_per_block=per_block)
        noise = noise.split(per_block, dim=2)
    for part in noise:
        if part.shape[2] != per_block:
            raise ValueError(f"a block of noise has {part.shape[2]} latent frames; the student's have {per_block}")
        yield part


def _make_cache(
    student: CausalWanTransformer3DModel,
    part: torch.Tensor,
    batch: int,
    frames: int | None,
    window: int | None,
    sink: int,
) -> KVCache:
    """Memory for ``batch`` videos of ``frames`` (None: unknown) of the size of ``part``, the first block of noise."""
    if window is None and (frames is None or sink):
        raise ValueError(f"window is None and sink is {sink}; a sink and noise that comes block by block need a window")
    size = {"batch_size": batch, "height": part.shape[3], "width": part.shape[4]}
    if frames is not None and (window is None or frames <= window):
        return student.make_kv_cache(num_frames=frames, **size)
    assert window is not None
    return student.make_kv_cache(num_frames=window, sink_frames=sink, **size)


@torch.no_grad()
def _remember(
    student: CausalWanTransformer3DModel,
    texts: torch.Tensor,
    cache: KVCache,
    start: int,
    finished: torch.Tensor,
    schedule: ScheduleConfig,
) -> None:
    """Write the ``finished`` block at latent frame ``start`` into ``cache``, clean, once for each half of ``texts``."""
    clean = torch.full((len(texts),), schedule.context_timestep, device=finished.device)
    write = conditional(student, texts, kv_cache=cache, start_frame=start)
    write(finished.repeat(len(texts) // len(finished), 1, 1, 1, 1), clean)
