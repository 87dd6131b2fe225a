"""Generate samples of the student in DMD (CausVid algorithm 1, lines 4 to 6). Each class is one way to generate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import ClassVar, NamedTuple, Protocol, cast

import torch

from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.velocity import Velocity
from causvid.methods.dmd.config import DmdConfig, Inputs
from causvid.methods.shared.batches import Batch
from causvid.methods.shared.networks import Trainee
from causvid.methods.shared.timesteps import block_choices
from causvid.record import StudentRecord
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import BlockLayout
from causvid.sampling.autoregressive import rollout_with_gradient
from causvid.sampling.few_step import noisy_states
from causvid.training.run import Run
from causvid.wan.transformer.wan import CausalTransformer

DmdRun = Run[DmdConfig, StudentRecord]


class Samples(NamedTuple):
    """Samples of the student for a batch, or for a micro-batch of it.

    Attributes:
        step: Training step in which the samples were generated.
        batch: The batch with the prompts of the samples, and with the sample numbers that determine the noise.
        x0: The samples [B, C, F, H, W].
        noisy: Whether the input of the student had noise, for each frame [B, F].
        noisy_frames: Number of noisy frames in the whole batch, a scalar.
    """

    step: int
    batch: Batch
    x0: torch.Tensor
    noisy: torch.Tensor
    noisy_frames: torch.Tensor

    def micro_batches(self, count: int) -> Iterator[Samples]:
        """Yield the samples in ``count`` micro-batches of equal size, without their gradient."""
        slices = zip(
            self.batch.micro_batches(count), self.x0.detach().chunk(count), self.noisy.chunk(count), strict=True
        )
        return (Samples(self.step, *part, self.noisy_frames) for part in slices)


class Source(Protocol):
    """A way to generate samples. ``purpose`` ("student" or "critic") is one of the values that determine the noise."""

    needs_latents: ClassVar[bool]  # whether the input includes real clips, or prompts only

    def __call__(self, step: int, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """Return the student's x0 [B, C, F, H, W] for the prompt embeddings ``text`` [B, L, D] of ``batch``."""
        ...

    def noisy(self, batch: Batch, purpose: str) -> torch.Tensor:
        """Return for each frame of the samples whether the student's input had noise in this frame [B, F]."""
        ...


class Noised:
    """Denoise real clips with added noise in one forward pass.

    Each block is noisy at one of the student's timesteps, or clean context for later blocks (CausVid sec. 4.2).
    """

    needs_latents: ClassVar[bool] = True

    def __init__(self, run: DmdRun, student: Trainee) -> None:
        self.run, self.student = run, student

    def __call__(self, step: int, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """Return the student's x0."""
        chosen, timestep = self._timesteps(batch, purpose)
        velocity = self.student.velocity(text)
        x_t = self._inputs(batch, velocity, chosen, timestep, purpose)
        return velocity_to_x0(x_t, velocity(x_t, timestep), sigma_of(timestep))

    def noisy(self, batch: Batch, purpose: str) -> torch.Tensor:
        """Return whether the timestep of each frame is above 0."""
        return self._timesteps(batch, purpose)[1] > 0

    def _inputs(
        self, batch: Batch, velocity: Velocity, chosen: torch.Tensor, timestep: torch.Tensor, purpose: str
    ) -> torch.Tensor:
        """Return the noisy clips x_t [B, C, F, H, W]. ``chosen`` has the step indices, ``timestep`` their timesteps."""
        return add_noise(batch.latents, batch.noise(self.run.seed, f"{purpose}_noise"), sigma_of(timestep))

    def _timesteps(self, batch: Batch, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one of the student's denoising steps for every block.

        All frames of a block have the same step. An image is one block, and the clip of a bidirectional student is also
        one block. A single block is never clean, because no later block needs it as context.

        Returns:
            Index of the step (the last index means clean) and its timestep, both repeated for each frame [B, F].
        """
        frames, steps = batch.latents.shape[2], self.run.record.schedule.denoising_timesteps
        blocks = self.run.record.frames_per_block if frames > 1 else None
        layout = BlockLayout(frames=frames, frames_per_block=blocks or frames)
        times = torch.tensor([*steps, *([0.0] if blocks else [])], dtype=torch.float64)
        draws = [generator(self.run.seed, purpose, number) for number in batch.numbers]
        chosen = torch.stack([block_choices(layout, len(times), draw) for draw in draws])
        return chosen, times[chosen].to(batch.latents.device)


class Simulated(Noised):
    """Denoise states of a bidirectional student's sampler in one forward pass (backward simulation of DMD2)."""

    needs_latents: ClassVar[bool] = False

    @torch.no_grad()
    def _inputs(
        self, batch: Batch, velocity: Velocity, chosen: torch.Tensor, timestep: torch.Tensor, purpose: str
    ) -> torch.Tensor:
        renoise = count()
        states = noisy_states(
            velocity,
            batch.noise(self.run.seed, f"{purpose}_noise"),
            self.run.record.schedule.denoising_timesteps,
            lambda: batch.noise(self.run.seed, f"{purpose}_renoise_{next(renoise)}"),
        )
        x_t = torch.stack(list(states))  # all states: every rank must do the same number of forward passes
        rows = torch.arange(len(chosen), device=x_t.device)
        return x_t[chosen[:, 0].to(x_t.device), rows]


class Rollout:
    """Generate training clips with a causal student, one block after another.

    Each block starts as noise, and attends to the earlier blocks in a KV cache. The rollout is that of Self-Forcing
    (arXiv 2506.08009, algorithm 1), but gradients also flow through the cache.
    """

    needs_latents: ClassVar[bool] = False
    truncated: ClassVar[bool] = False  # whether the gradient stops at the KV cache

    def __init__(self, run: DmdRun, student: Trainee) -> None:
        self.run, self.student = run, student

    def __call__(self, step: int, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """Return the student's x0. All ranks draw the same exit step, so that they do the same forward passes."""
        schedule, seed, renoise = self.run.record.schedule, self.run.seed, count()
        channels, _, *size = batch.latents.shape[1:]
        exit_step = torch.randint(
            len(schedule.denoising_timesteps), (), generator=generator(seed, f"{purpose}_exit", step)
        )
        return rollout_with_gradient(
            cast(CausalTransformer, self.student.model),
            text,
            batch.noise(seed, f"{purpose}_noise"),
            schedule,
            lambda frames: batch.noise(seed, f"{purpose}_renoise_{next(renoise)}", (channels, frames, *size)),
            int(exit_step),
            truncated=self.truncated,
        )

    def noisy(self, batch: Batch, purpose: str) -> torch.Tensor:
        """Return True for all frames."""
        frames, device = batch.latents.shape[2], batch.latents.device
        return torch.ones(len(batch.latents), frames, dtype=torch.bool, device=device)


class TruncatedRollout(Rollout):
    """Generate the same clips as ``Rollout``, but with a gradient that stops at the KV cache, as in Self-Forcing."""

    truncated: ClassVar[bool] = True


def source_class(run: DmdRun) -> type[Noised] | type[Rollout]:
    """Choose the class that generates samples from ``train_dmd.inputs`` and the kind of student."""
    if run.config.inputs == Inputs.DATA:
        return Noised
    if run.record.frames_per_block is None:
        return Simulated
    return TruncatedRollout if run.config.inputs == Inputs.TRUNCATED_ROLLOUT else Rollout
