"""Distribution matching distillation of the student against the bidirectional teacher (CausVid algorithm 1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt

from causvid.data.datasets import sample_index
from causvid.data.latent_store import LatentStore
from causvid.data.prompt_store import PromptStore
from causvid.diffusion.flow import TRAIN_TIMESTEPS, add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.timesteps import block_choices, score_timestep
from causvid.diffusion.velocity import Velocity, conditional, guided
from causvid.losses.dmd import dmd_loss
from causvid.losses.flow_matching import flow_matching_loss
from causvid.models.causal_wan import CausalWanTransformer3DModel
from causvid.models.wan import for_training, load_transformer
from causvid.runtime import device as devices
from causvid.runtime.distributed import weight_of
from causvid.runtime.parallel import Compute
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker, Watch
from causvid.sampling.autoregressive import rollout_with_gradient
from causvid.sampling.few_step import noisy_states
from causvid.shapes import BlockLayout
from causvid.training.batches import Batch, Texts, read_batch
from causvid.training.checkpoint import Stateful
from causvid.training.networks import averaged, save_whole, spread
from causvid.training.optimizers import Optimizer, OptimizerConfig, backward, is_block_matrix
from causvid.training.previews import previews_of
from causvid.training.speed import Work, clip_of
from causvid.training.trainer import train

SATURATED = 3.0  # standard deviations of the latents, which have one; of a normal law .3 % lie beyond


class Inputs(StrEnum):
    """What the student denoises in training: real clips with noise, or what its own sampler shows it from noise on."""

    DATA = "data"
    ROLLOUT = "rollout"


@dataclass(frozen=True, kw_only=True)
class DmdConfig:
    """Params section ``train_dmd``. steps counts critic updates; batch_size is global.

    share_samples: whether the critic's updates between two of the student, each at times and noise of its own, and the
    student's that follows learn from one batch of the student's samples, not from fresh ones each;
    critic_only_steps come before the first student update; guidance_scale w is the teacher's (uncond + w (cond -
    uncond)); score_shift and score_timesteps are the law of the time at which the scores are compared.
    clean_frames_in_loss: whether frames the student was given clean count in the loss' means; image_share: of the
    steps, those whose batch is single images, the clips' first frames.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt
    critic_updates_per_student_update: PositiveInt
    share_samples: bool
    critic_only_steps: NonNegativeInt
    guidance_scale: float
    student_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    inputs: Inputs
    clean_frames_in_loss: bool
    image_share: float
    score_shift: float
    score_timesteps: tuple[float, float]
    ema_decay: float
    checkpoint_every: PositiveInt

    def __post_init__(self) -> None:
        low, high = self.score_timesteps
        if not 0 < low <= high <= TRAIN_TIMESTEPS:
            raise ValueError(
                f"train_dmd.score_timesteps is [{low:g}, {high:g}]; it must be two times, the smaller one first, "
                f"above 0 (clean samples have no score) and up to {TRAIN_TIMESTEPS}"
            )
        if not 0 <= self.image_share <= 1:
            raise ValueError(f"train_dmd.image_share is {self.image_share:g}; it is a share, between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DmdJob:
    """What a worker needs to distil; the result is the diffusers folder ``work``/export."""

    config: DmdConfig
    schedule: ScheduleConfig
    seed: int
    precision: devices.Precision
    compute: Compute
    latents: Path
    prompts: Path
    teacher: Path
    student: Path
    work: Path
    tracker: Tracker
    watch: Watch
    made_from: Mapping[str, str]
    vae: Path
    fps: int


class Sampled(NamedTuple):
    """The student's x0 [B, C, F, H, W] of the batch of a step, and which of its frames [B, F] were noisy."""

    step: int
    batch: Batch
    x0: torch.Tensor
    noisy: torch.Tensor


class DmdStep:
    """One critic update a step, and every few steps one of the student (algorithm 1, two time scales)."""

    def __init__(self, job: DmdJob) -> None:
        self.job, self.device = job, devices.pick()
        self.rolls_out = job.config.inputs == Inputs.ROLLOUT
        self.store, prompts = LatentStore(job.latents), PromptStore(job.prompts)
        self.captions = prompts.captions
        self.texts = Texts(prompts, self.device, job.latents if job.config.steps and not self.rolls_out else None)
        teacher = load_transformer(job.teacher).to(self.device)
        critic = for_training(copy.deepcopy(teacher), self.device, job.compute.gradient_checkpointing)
        self.critic = spread(critic, job.compute, job.precision)
        self.teacher = spread(teacher.requires_grad_(False).eval(), job.compute, job.precision)
        student = for_training(load_transformer(job.student), self.device, job.compute.gradient_checkpointing)
        self.average = averaged(student, job.config.ema_decay, job.compute)
        self.student = spread(student, job.compute, job.precision)
        self.shared: Sampled | None = None
        self.frames_per_block: int | None = self.student.config.get("frames_per_block")  # None: bidirectional
        shape = self.store.metadata["shape"]
        self.clip = clip_of(self.student.config, shape, self.frames_per_block, self.texts.length)
        config = job.config
        self.student_optimizer = Optimizer(
            self.student, config.student_optimizer, steps=config.steps, is_matrix=is_block_matrix
        )
        self.critic_optimizer = Optimizer(
            self.critic, config.critic_optimizer, steps=config.steps, is_matrix=is_block_matrix
        )

    def parts(self) -> dict[str, Stateful]:
        """Student, its average, critic, both optimizers. The teacher never changes."""
        return {
            "student": self.student,
            "average": self.average,
            "critic": self.critic,
            "student_optimizer": self.student_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def export(self, folder: Path) -> None:
        """The student's weight average."""
        save_whole(self.average.module, folder)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Algorithm 1, one iteration.

        The student's turn is the first of as many as the ratio says; with shared samples the last, as the critic has to
        learn from them while the student that made them is still there to be asked again after a resume.
        """
        ratio, after = self.job.config.critic_updates_per_student_update, step - self.job.config.critic_only_steps
        if self.job.config.share_samples:
            sampled = self._shared(max(0, step - after % ratio))
            values = self._update_critic(step, sampled._replace(x0=sampled.x0.detach()))
            if self._is_students_turn(step):
                self.shared = None
                values |= self._update_student(step, sampled)
            return values | sizes(sampled.x0)
        values = {}
        if self._is_students_turn(step):
            values = self._update_student(step, self._sample(step, "student"))
        with torch.no_grad():
            sampled = self._sample(step, "critic")
        return values | self._update_critic(step, sampled) | sizes(sampled.x0)

    def _is_students_turn(self, step: int) -> bool:
        ratio, after = self.job.config.critic_updates_per_student_update, step - self.job.config.critic_only_steps
        return after >= 0 and after % ratio == (ratio - 1 if self.job.config.share_samples else 0)

    def work(self, step: int) -> Work:
        """The updates of a step on clips; of one on images it says the same. Exit steps are taken as their mean."""
        config = self.job.config
        update = self.clip.dmd(
            few_steps=len(self.job.schedule.denoising_timesteps),
            rolls_out=self.rolls_out,
            streams=self.frames_per_block is not None,
            shared_by=config.critic_updates_per_student_update if config.share_samples else 0,
            guidance_scale=config.guidance_scale,
        )
        flops = update.critic + (update.student if self._is_students_turn(step) else 0.0)
        return Work(config.batch_size, config.batch_size * self.clip.tokens, config.batch_size * flops)

    def _shared(self, first: int) -> Sampled:
        """What the iterations from ``first`` to the student's turn learn from; before its first turn, no gradient."""
        if self.shared is None or self.shared.step != first:
            with torch.set_grad_enabled(first >= self.job.config.critic_only_steps):
                self.shared = self._sample(first, "critic")
        return self.shared

    def _read(self, step: int) -> Batch:
        """What step ``step`` asks the student for."""
        job = self.job
        batch = read_batch(self.store, seed=job.seed, step=step, size=job.config.batch_size, device=self.device)
        if self.rolls_out:  # needs prompts only: those of encode_prompts.captions, and of the latents their size
            batch = batch._replace(
                prompts=[self.captions[sample_index(job.seed, n, len(self.captions))] for n in batch.numbers]
            )
        if torch.rand((), generator=generator(job.seed, "image_batch", step)) < job.config.image_share:
            batch = batch._replace(latents=batch.latents[:, :, :1])  # a VAE's first latent frame is one picture
        return batch

    def _sample(self, step: int, purpose: str) -> Sampled:
        batch = self._read(step)
        with self._autocast():
            x0, noisy = self._generate(step, batch, self.texts(batch.prompts), purpose)
        return Sampled(step, batch, x0, noisy)

    def _update_student(self, step: int, sampled: Sampled) -> dict[str, torch.Tensor]:
        batch, noisy = sampled.batch, sampled.noisy
        text = self.texts(batch.prompts)
        with self._autocast():
            out = dmd_loss(
                sampled.x0,
                batch.noise(self.job.seed, "student_score_noise"),
                self._score_times(batch, "student_score"),
                teacher=guided(self.teacher, text, self.texts.negative(), self.job.config.guidance_scale),
                critic=conditional(self.critic, text),
                scored=None if self.job.config.clean_frames_in_loss else noisy,
            )
        worth = torch.ones(()) if self.job.config.clean_frames_in_loss else weight_of(noisy.sum())
        loss = out.loss * worth.to(self.device)
        backward(loss, step)
        norm = self.student_optimizer.step(step)
        self.average.update_parameters(self.student)
        return {
            "student_loss": loss,
            "student_grad_norm": norm,
            "dmd_gradient": out.gradient_size * worth.to(self.device),
            "dmd_normaliser": out.normaliser,
        }

    def _update_critic(self, step: int, sampled: Sampled) -> dict[str, torch.Tensor]:
        """A denoising step on samples of this step or of an earlier one: times and noise are those of ``step``."""
        shift = (step - sampled.step) * self.job.config.batch_size
        batch = sampled.batch._replace(numbers=[number + shift for number in sampled.batch.numbers])
        with self._autocast():
            noise, times = batch.noise(self.job.seed, "critic_score_noise"), self._score_times(batch, "critic_score")
            loss = flow_matching_loss(conditional(self.critic, self.texts(batch.prompts)), sampled.x0, noise, times)
        backward(loss, step)
        return {"critic_loss": loss, "critic_grad_norm": self.critic_optimizer.step(step)}

    def _autocast(self) -> AbstractContextManager[object]:
        """One per forward: a context that outlived an optimizer step would go on with weights cast before it."""
        return devices.autocast(self.device, self.job.precision)

    def _generate(self, step: int, batch: Batch, text: torch.Tensor, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's x0 (line 5-6) and which of its frames [B, F] were noisy."""
        if self.rolls_out and isinstance(self.student, CausalWanTransformer3DModel):
            sample = self._roll_out(self.student, step, batch, text, purpose)
            return sample, torch.ones(len(sample), sample.shape[2], dtype=torch.bool, device=self.device)
        return self._denoise(batch, text, purpose)

    def _roll_out(
        self, student: CausalWanTransformer3DModel, step: int, batch: Batch, text: torch.Tensor, purpose: str
    ) -> torch.Tensor:
        """A causal student's own clip. One exit step for the global batch: every rank makes the same passes."""
        schedule, seed, renoise = self.job.schedule, self.job.seed, count()
        channels, _, *size = batch.latents.shape[1:]
        exit_step = torch.randint(
            len(schedule.denoising_timesteps), (), generator=generator(seed, f"{purpose}_exit", step)
        )
        return rollout_with_gradient(
            student,
            text,
            batch.noise(seed, f"{purpose}_noise"),
            schedule,
            lambda frames: batch.noise(seed, f"{purpose}_renoise_{next(renoise)}", (channels, frames, *size)),
            int(exit_step),
        )

    def _denoise(self, batch: Batch, text: torch.Tensor, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """x0 in one pass, each block at one of the student's steps or given clean, as context for later ones.

        An image and a bidirectional student's clip are one block.
        """
        frames, steps = batch.latents.shape[2], self.job.schedule.denoising_timesteps
        blocks = self.frames_per_block is not None and frames > 1
        layout = BlockLayout(frames=frames, frames_per_block=(self.frames_per_block if blocks else None) or frames)
        times = torch.tensor([*steps, *([0.0] if blocks else [])], dtype=torch.float64)
        draws = [generator(self.job.seed, purpose, number) for number in batch.numbers]
        chosen = torch.stack([block_choices(layout, len(times), draw) for draw in draws])
        timestep = times[chosen].to(self.device)
        sigma, student = sigma_of(timestep), conditional(self.student, text)
        if self.rolls_out:
            x_t = self._simulate(batch, student, chosen[:, 0], purpose)
        else:
            x_t = add_noise(batch.latents, batch.noise(self.job.seed, f"{purpose}_noise"), sigma)
        return velocity_to_x0(x_t, student(x_t, timestep), sigma), timestep > 0

    @torch.no_grad()
    def _simulate(self, batch: Batch, student: Velocity, chosen: torch.Tensor, purpose: str) -> torch.Tensor:
        """What the sampler shows a bidirectional student at step ``chosen`` [B] of its own trajectory from noise."""
        renoise = count()
        states = noisy_states(
            student,
            batch.noise(self.job.seed, f"{purpose}_noise"),
            self.job.schedule.denoising_timesteps,
            lambda: batch.noise(self.job.seed, f"{purpose}_renoise_{next(renoise)}"),
        )
        x_t = torch.stack(list(states))  # all of them: every rank makes the same number of passes
        return x_t[chosen.to(self.device), torch.arange(len(chosen), device=self.device)]

    def _score_times(self, batch: Batch, purpose: str) -> torch.Tensor:
        config = self.job.config
        times = [
            score_timestep(config.score_shift, *config.score_timesteps, generator(self.job.seed, purpose, number))
            for number in batch.numbers
        ]
        return torch.stack(times).to(self.device)


def sizes(x0: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every latent frame of ``x0`` [B, C, F, H, W]: mean |x0|, and the share beyond ``SATURATED``."""
    large = x0.detach().abs().transpose(1, 2).flatten(2)  # [B, F, C H W]
    means, shares = large.mean((0, 2)), (large > SATURATED).float().mean((0, 2))
    return {
        f"{name}/frame_{frame:02d}": value
        for name, values in (("x0_abs", means), ("x0_saturated", shares))
        for frame, value in enumerate(values)
    }


def train_dmd(job: DmdJob) -> None:
    """Distil on every rank. Zero steps export the student as it came."""
    step = DmdStep(job)
    train(step, job, previews_of(job, step.average.module, step.texts.store, step.store.metadata["shape"]))
