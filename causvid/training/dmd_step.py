"""Distribution matching distillation of the causal student against the bidirectional teacher (CausVid algorithm 1)."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from causvid.data.latent_store import LatentStore
from causvid.data.prompt_store import PromptStore
from causvid.diffusion.flow import TRAIN_TIMESTEPS, add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.timesteps import block_choices, score_timestep
from causvid.diffusion.velocity import conditional, guided
from causvid.losses.dmd import dmd_loss
from causvid.losses.flow_matching import flow_matching_loss
from causvid.models.wan import for_training, load_transformer
from causvid.runtime import device as devices
from causvid.runtime.distributed import replicate
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker
from causvid.shapes import BlockLayout
from causvid.training.batches import Batch, Texts, read_batch
from causvid.training.checkpoint import Stateful
from causvid.training.optimizers import Optimizer, OptimizerConfig, is_block_matrix
from causvid.training.trainer import train


@dataclass(frozen=True, kw_only=True)
class DmdConfig:
    """Params section ``train_dmd``. steps counts critic updates; batch_size is global.

    critic_only_steps come before the first student update; guidance_scale w is the teacher's (uncond + w (cond -
    uncond)); score_shift and score_timesteps are the law of the time at which the scores are compared.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt
    critic_updates_per_student_update: PositiveInt
    critic_only_steps: NonNegativeInt
    guidance_scale: float
    student_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
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


@dataclass(frozen=True, kw_only=True)
class DmdJob:
    """What a worker needs to distil; the result is the diffusers folder ``work``/export."""

    config: DmdConfig
    schedule: ScheduleConfig
    seed: int
    precision: devices.Precision
    gradient_checkpointing: bool
    latents: Path
    prompts: Path
    teacher: Path
    student: Path
    work: Path
    tracker: Tracker


class DmdStep:
    """One critic update, and every few steps a student update before it (algorithm 1, two time scales)."""

    def __init__(self, job: DmdJob) -> None:
        self.job, self.device = job, devices.pick()
        self.store, self.texts = LatentStore(job.latents), Texts(PromptStore(job.prompts), self.device)
        self.times = torch.tensor([*job.schedule.denoising_timesteps, 0.0], dtype=torch.float64)
        teacher = load_transformer(job.teacher).to(self.device)
        self.critic = replicate(for_training(copy.deepcopy(teacher), self.device, job.gradient_checkpointing))
        self.teacher = teacher.requires_grad_(False).eval()
        student = for_training(load_transformer(job.student), self.device, job.gradient_checkpointing)
        self.average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(job.config.ema_decay))
        self.student = replicate(student)  # after the copy: a replica cannot be copied
        frames = self.store.metadata["shape"][0]
        self.layout = BlockLayout(frames=frames, frames_per_block=self.student.config.frames_per_block)
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
        model: Any = self.average.module
        model.save_pretrained(folder)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Algorithm 1, one iteration."""
        job = self.job
        batch = read_batch(self.store, seed=job.seed, step=step, size=job.config.batch_size, device=self.device)
        text = self.texts(batch.prompts)
        values: dict[str, torch.Tensor] = {}
        after = step - job.config.critic_only_steps
        if after >= 0 and after % job.config.critic_updates_per_student_update == 0:
            values |= self._update_student(step, batch, text)
        return values | self._update_critic(step, batch, text)

    def _update_student(self, step: int, batch: Batch, text: torch.Tensor) -> dict[str, torch.Tensor]:
        with self._autocast():
            out = dmd_loss(
                self._generate(batch, text, "student"),
                batch.noise(self.job.seed, "student_score_noise"),
                self._score_times(batch, "student_score"),
                teacher=guided(self.teacher, text, self.texts.negative(), self.job.config.guidance_scale),
                critic=conditional(self.critic, text),
            )
        out.loss.backward()
        norm = self.student_optimizer.step(step)
        self.average.update_parameters(self.student)
        return {
            "student_loss": out.loss,
            "student_grad_norm": norm,
            "dmd_gradient": out.gradient_size,
            "dmd_normaliser": out.normaliser,
        }

    def _update_critic(self, step: int, batch: Batch, text: torch.Tensor) -> dict[str, torch.Tensor]:
        with self._autocast():
            with torch.no_grad():
                sample = self._generate(batch, text, "critic")
            noise, times = batch.noise(self.job.seed, "critic_score_noise"), self._score_times(batch, "critic_score")
            loss = flow_matching_loss(conditional(self.critic, text), sample, noise, times)
        loss.backward()
        return {"critic_loss": loss, "critic_grad_norm": self.critic_optimizer.step(step)}

    def _autocast(self) -> AbstractContextManager[object]:
        """One per forward: a context that outlived an optimizer step would go on with weights cast before it."""
        return devices.autocast(self.device, self.job.precision)

    def _generate(self, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """The student's x0 of real clips noised block by block, each block at one of its steps or clean (line 5-6)."""
        draws = [generator(self.job.seed, purpose, number) for number in batch.numbers]
        chosen = torch.stack([block_choices(self.layout, len(self.times), draw) for draw in draws])
        timestep = self.times[chosen].to(self.device)
        sigma = sigma_of(timestep)
        x_t = add_noise(batch.latents, batch.noise(self.job.seed, f"{purpose}_noise"), sigma)
        return velocity_to_x0(x_t, conditional(self.student, text)(x_t, timestep), sigma)

    def _score_times(self, batch: Batch, purpose: str) -> torch.Tensor:
        config = self.job.config
        times = [
            score_timestep(config.score_shift, *config.score_timesteps, generator(self.job.seed, purpose, number))
            for number in batch.numbers
        ]
        return torch.stack(times).to(self.device)


def train_dmd(job: DmdJob) -> None:
    """Distil on every rank. Zero steps export the student as it came."""
    config = job.config
    train(
        DmdStep(job), steps=config.steps, checkpoint_every=config.checkpoint_every, work=job.work, tracker=job.tracker
    )
