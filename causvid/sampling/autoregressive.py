"""Generate videos block by block: denoise a block, write it into the KV cache, repeat (CausVid algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import Velocity, conditional, guide_halves
from causvid.runtime.shapes import BlockLayout
from causvid.sampling.few_step import few_step
from causvid.sampling.ode_solver import solve_ode
from causvid.wan.transformer.kv_cache import KVCache
from causvid.wan.transformer.wan import CausalTransformer

# Maps (velocity of a block given the earlier blocks, noise [B, C, k, H, W]) to the denoised block. With guidance, the
# velocity accepts 2 B samples: first B samples without the prompt, then B samples with the prompt.
Denoise = Callable[[Velocity, torch.Tensor], torch.Tensor]


def generate_blocks(
    student: CausalTransformer,
    text: torch.Tensor,
    noise: torch.Tensor | Iterable[torch.Tensor],
    schedule: ScheduleConfig,
    draw: Callable[[int], torch.Tensor],
    context: torch.Tensor | None = None,
    *,
    window: int | None = None,
    sink: int = 0,
) -> Iterator[torch.Tensor]:
    """Generate the blocks [B, C, k, H, W] of a few-step student, without gradients.

    Each block is yielded as soon as it is final.

    Args:
        student: The causal student, with blocks of k latent frames.
        text: Prompt embeddings [B, L, D].
        noise: Initial noise [B, C, F, H, W], or an iterable of noise blocks [B, C, k, H, W], which may be endless.
        schedule: Denoising timesteps, and the timestep of the context pass.
        draw: Function that returns new noise of the given number of latent frames.
        context: Known first latent frames [B, C, n, H, W]; n must be a multiple of k. Known frames are yielded
            unchanged, and later blocks attend to them.
        window: Number of latent frames in the cache; None = all latent frames of the video. In a video that is longer
            than the window, a block attends to the ``sink`` and to the latest frames only.
        sink: Number of first latent frames, which always stay in the window.

    Raises:
        ValueError: The frames cannot be divided into blocks, or ``window`` is None although ``noise`` is an iterable
            or ``sink`` is above 0.
    """

    def denoise(velocity: Velocity, part: torch.Tensor) -> torch.Tensor:
        return few_step(velocity, part, schedule.denoising_timesteps, lambda: draw(part.shape[2]))

    return _block_by_block(student, text, noise, denoise, schedule, context, window, sink)


def solve_blocks(
    model: CausalTransformer,
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
    """Generate the blocks [B, C, k, H, W] of a many-step causal model, without gradients.

    The solver is the Euler method with guidance.

    With guidance, the cache has 2 B entries, because the keys and values of a block depend on the prompt.
    ``generate_blocks`` describes the other arguments.

    Args:
        model: The causal model.
        negative: Embeddings of the negative prompt [1 or B, L, D].
        guidance_scale: Guidance scale w; with w = 1, the model is called without the negative prompt.
        schedule: Timesteps of the solver, and the timestep of the context pass.
    """
    sigmas = schedule.grid.sigmas(schedule.solver_steps)
    guides = guidance_scale != 1

    def denoise(velocity: Velocity, part: torch.Tensor) -> torch.Tensor:
        return solve_ode(guide_halves(velocity, guidance_scale) if guides else velocity, part, sigmas)[:, 0]

    texts = torch.cat([negative.expand_as(text), text]) if guides else text
    return _block_by_block(model, texts, noise, denoise, schedule, context, window, sink)


@torch.no_grad()
def _block_by_block(
    model: CausalTransformer,
    texts: torch.Tensor,
    noise: torch.Tensor | Iterable[torch.Tensor],
    denoise: Denoise,
    schedule: ScheduleConfig,
    context: torch.Tensor | None,
    window: int | None,
    sink: int,
) -> Iterator[torch.Tensor]:
    """Generate the blocks, with one cache entry for each prompt in ``texts``."""
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
        if finished is not None:  # the last block is never written, because no block attends to it
            _remember(model, texts, cache, start - per_block, finished, schedule)
        if context is not None and start < known:
            finished = context[:, :, start : start + per_block]
        else:
            finished = denoise(conditional(model, texts, kv_cache=cache, start_frame=start), part)
        yield finished


def rollout_with_gradient(
    student: CausalTransformer,
    text: torch.Tensor,
    noise: torch.Tensor,
    schedule: ScheduleConfig,
    draw: Callable[[int], torch.Tensor],
    exit_step: int,
    *,
    truncated: bool,
) -> torch.Tensor:
    """Generate a video for the training of the student (Self-Forcing, arXiv 2506.08009, algorithm 1).

    Every block is the x0 that the student predicts at the exit step. Gradients do not flow through the earlier
    timesteps.

    Args:
        student: The causal student.
        text: Prompt embeddings [B, L, D].
        noise: Initial noise [B, C, F, H, W]. A single latent frame (an image) is a block of one frame.
        schedule: Denoising timesteps, and the timestep of the context pass.
        draw: Function that returns new noise of the given number of latent frames.
        exit_step: Index of the denoising timestep whose x0 is returned. With the last index, ``generate_blocks``
            generates the same video from the same ``noise`` and ``draw``.
        truncated: Whether gradients stop at the cache, as in Self-Forcing. Otherwise, they also flow through the cache,
            from a block to the earlier blocks.

    Returns:
        The video [B, C, F, H, W].
    """
    _, _, frames, height, width = noise.shape
    layout = BlockLayout(frames=frames, frames_per_block=1 if frames == 1 else student.config.frames_per_block)
    history = student.make_kv_history(height=height, width=width)
    steps = schedule.denoising_timesteps[: exit_step + 1]
    blocks: list[torch.Tensor] = []
    for start, part in zip(layout.starts(), noise.split(layout.frames_per_block, dim=2), strict=True):
        if blocks:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not truncated):
                _remember(student, text, history, start - layout.frames_per_block, blocks[-1], schedule)
        velocity = conditional(student, text, kv_cache=history, start_frame=start)
        blocks.append(few_step(velocity, part, steps, lambda: draw(layout.frames_per_block)))
    return torch.cat(blocks, dim=2)


def _parts(noise: torch.Tensor | Iterable[torch.Tensor], per_block: int) -> Iterator[torch.Tensor]:
    """Yield the noise of each block."""
    if isinstance(noise, torch.Tensor):
        BlockLayout(frames=noise.shape[2], frames_per_block=per_block)
        noise = noise.split(per_block, dim=2)
    for part in noise:
        if part.shape[2] != per_block:
            raise ValueError(
                f"a block of noise has {part.shape[2]} latent frames; the blocks of the model have {per_block}"
            )
        yield part


def _make_cache(
    student: CausalTransformer,
    part: torch.Tensor,
    batch: int,
    frames: int | None,
    window: int | None,
    sink: int,
) -> KVCache:
    """Create a cache for ``batch`` videos of ``frames`` latent frames (None = unknown) in the size of ``part``."""
    if window is None and (frames is None or sink):
        raise ValueError(
            f"window is None and sink is {sink}; set window: a sink, or an iterable of noise blocks, needs a window"
        )
    size = {"batch_size": batch, "height": part.shape[3], "width": part.shape[4]}
    if frames is not None and (window is None or frames <= window):
        return student.make_kv_cache(num_frames=frames, **size)
    assert window is not None
    return student.make_kv_cache(num_frames=window, sink_frames=sink, **size)


def _remember(
    student: CausalTransformer,
    texts: torch.Tensor,
    cache: KVCache,
    start: int,
    finished: torch.Tensor,
    schedule: ScheduleConfig,
) -> None:
    """Write the ``finished`` block, which starts at latent frame ``start``, into ``cache`` at the context timestep.

    With guidance, ``texts`` has twice as many samples as ``finished``, and the block is written for both prompts.
    """
    clean = torch.full((len(texts),), schedule.context_timestep, device=finished.device)
    write = conditional(student, texts, kv_cache=cache, start_frame=start)
    write(finished.repeat(len(texts) // len(finished), 1, 1, 1, 1), clean)
