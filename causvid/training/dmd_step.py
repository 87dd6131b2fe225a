"""Distribution matching distillation of the student against the bidirectional teacher (CausVid algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from diffusers import WanTransformer3DModel
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
from causvid.models.lora import with_adapter, without_adapter
from causvid.models.wan import for_training, load_transformer
from causvid.record import StudentRecord
from causvid.runtime import device as devices
from causvid.runtime.distributed import share_of, synchronize_gradients, weight_of
from causvid.runtime.parallel import Compute
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker, Watch
from causvid.sampling.autoregressive import rollout_with_gradient
from causvid.sampling.few_step import noisy_states
from causvid.shapes import BlockLayout
from causvid.training.batches import Batch, Texts, read_batch
from causvid.training.checkpoint import Stateful
from causvid.training.networks import Trained, averaged, save_whole, spread
from causvid.training.optimizers import Optimizer, OptimizerConfig, backward, is_block_matrix
from causvid.training.previews import previews_of
from causvid.training.recording import Clips, student_record
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
    critic_lora_rank: None trains all of the critic's weights; else it is the teacher with a LoRA adapter of that rank.
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
    critic_lora_rank: PositiveInt | None
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
    clips: Clips
    prompts: Path
    teacher: Path
    student: Path
    work: Path
    tracker: Tracker
    watch: Watch
    made_from: Mapping[str, str]
    vae: Path

    def record(self, frames_per_block: int | None) -> StudentRecord:
        """Return the training record of the student, which has the blocks of the initial student."""
        return student_record(self.clips, self.schedule, self.prompts, self.precision, frames_per_block)


class Sampled(NamedTuple):
    """The student's x0 [B, C, F, H, W] of a batch of a step, or of a part of it; which of its frames [B, F] were noisy,
    and how many of the whole."""

    step: int
    batch: Batch
    x0: torch.Tensor
    noisy: torch.Tensor
    noisy_frames: torch.Tensor

    def micro_batches(self, count: int) -> Iterator[Sampled]:
        """Its samples in ``count`` equal parts, without the gradient."""
        slices = zip(
            self.batch.micro_batches(count), self.x0.detach().chunk(count), self.noisy.chunk(count), strict=True
        )
        return (Sampled(self.step, *part, self.noisy_frames) for part in slices)


class DmdStep:
    """One critic update a step, and every few steps one of the student (algorithm 1, two time scales)."""

    def __init__(self, job: DmdJob) -> None:
        self.job, self.device, self.accumulation = job, devices.pick(), job.compute.gradient_accumulation_steps
        self.rolls_out = job.config.inputs == Inputs.ROLLOUT
        self.store, prompts = LatentStore(job.latents), PromptStore(job.prompts)
        self.captions = prompts.captions
        self.texts = Texts(prompts, self.device, job.latents if job.config.steps and not self.rolls_out else None)
        self.critic = spread(self._new_critic(), job.compute, job.precision)
        self.teacher = self.critic  # without its adapter
        if job.config.critic_lora_rank is None:
            teacher = load_transformer(job.teacher).requires_grad_(False)
            self.teacher = spread(teacher, job.compute, job.precision)
        student = self._to_train(load_transformer(job.student))
        self.average = averaged(student, job.config.ema_decay, job.compute)
        self.student = spread(student, job.compute, job.precision)
        self.shared: Sampled | None = None
        self.frames_per_block: int | None = self.student.config.get("frames_per_block")  # None: bidirectional
        self.streams = self.rolls_out and self.frames_per_block is not None
        shape = self.store.metadata["shape"]
        self.clip = clip_of(self.student.config, shape, self.frames_per_block, self.texts.length)
        config = job.config
        self.student_optimizer = Optimizer(
            self.student, config.student_optimizer, steps=config.steps, is_matrix=is_block_matrix
        )
        self.critic_optimizer = Optimizer(
            self.critic, config.critic_optimizer, steps=config.steps, is_matrix=is_block_matrix
        )

    def _to_train(self, model: WanTransformer3DModel) -> WanTransformer3DModel:
        compute = self.job.compute
        return for_training(model, compute.gradient_checkpointing, compiled=compute.compile)

    def _new_critic(self) -> WanTransformer3DModel:
        critic, rank = load_transformer(self.job.teacher), self.job.config.critic_lora_rank
        return self._to_train(critic if rank is None else with_adapter(critic, rank, self.job.seed))

    def parts(self) -> dict[str, Stateful]:
        """Student, its average, critic, both optimizers. The teacher never changes."""
        return {
            "student": self.student,
            "average": self.average,
            "critic": self.critic if self.job.config.critic_lora_rank is None else Trained(self.critic),
            "student_optimizer": self.student_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def export(self, folder: Path) -> None:
        """The student's weight average."""
        save_whole(self.average.module, folder, self.job.record(self.frames_per_block))

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Algorithm 1, one iteration.

        The student's turn is the first of as many as the ratio says; with shared samples the last, as the critic has to
        learn from them while the student that made them is still there to be asked again after a resume.
        """
        config = self.job.config
        if config.share_samples:
            ratio, after = config.critic_updates_per_student_update, step - config.critic_only_steps
            sampled = self._shared(max(0, step - after % ratio))
            values = self._update_critic(step, sampled.micro_batches(self.accumulation))
            if self._is_students_turn(step):
                self.shared = None
                values |= self._update_student(step, [sampled])
            return values
        values = self._update_student(step, self._samples(step, "student")) if self._is_students_turn(step) else {}
        return values | self._update_critic(step, self._samples(step, "critic"))

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
            critic_lora_rank=config.critic_lora_rank,
        )
        flops = update.critic + (update.student if self._is_students_turn(step) else 0.0)
        return Work(config.batch_size, config.batch_size * self.clip.tokens, config.batch_size * flops)

    def _shared(self, first: int) -> Sampled:
        """What the iterations from ``first`` to the student's turn learn from; before its first turn, no gradient.

        In one pass whatever the number of passes: its graph has to wait for the student's turn.
        """
        if self.shared is None or self.shared.step != first:
            gradient = first >= self.job.config.critic_only_steps
            batch = self._read(first)
            self.shared = self._sample(first, batch, batch, "critic", gradient=gradient)
        return self.shared

    def _samples(self, step: int, purpose: Literal["student", "critic"]) -> Iterator[Sampled]:
        """The student's samples for an update, part after part, with a gradient where the update is its own."""
        batch = self._read(step)
        for number, part in enumerate(batch.micro_batches(self.accumulation), start=1):
            if purpose == "student":
                synchronize_gradients(self.student, number == self.accumulation)
            yield self._sample(step, batch, part, purpose, gradient=purpose == "student")

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

    def _sample(self, step: int, batch: Batch, part: Batch, purpose: str, *, gradient: bool) -> Sampled:
        with torch.set_grad_enabled(gradient), self._autocast():
            x0 = self._generate(step, part, self.texts(part.prompts), purpose)
        return Sampled(step, part, x0, self._noisy(part, purpose), self._noisy(batch, purpose).sum())

    def _update_student(self, step: int, samples: Iterable[Sampled]) -> dict[str, torch.Tensor]:
        values: dict[str, torch.Tensor] = {}
        for sampled in samples:
            batch, share = sampled.batch, self._share(sampled)
            text = self.texts(batch.prompts)
            with self._autocast():
                out = dmd_loss(
                    sampled.x0,
                    batch.noise(self.job.seed, "student_score_noise"),
                    self._score_times(batch, "student_score"),
                    teacher=self._teacher(text),
                    critic=conditional(self.critic, text),
                    scored=None if self.job.config.clean_frames_in_loss else sampled.noisy,
                )
            all_count = self.job.config.clean_frames_in_loss
            worth = share if all_count else weight_of(sampled.noisy.sum(), sampled.noisy_frames)
            loss = out.loss * worth
            backward(loss, step)
            found = {"student_loss": loss, "dmd_gradient": out.gradient_size * worth}
            add(values, {**found, "dmd_normaliser": out.normaliser * share})
        norm = self.student_optimizer.step(step)
        self.average.update_parameters(self.student)
        return {**values, "student_grad_norm": norm}

    def _update_critic(self, step: int, samples: Iterable[Sampled]) -> dict[str, torch.Tensor]:
        """A denoising step on samples of this step or of an earlier one: times and noise are those of ``step``."""
        values: dict[str, torch.Tensor] = {}
        for part, sampled in enumerate(samples, start=1):
            synchronize_gradients(self.critic, part == self.accumulation)
            shift, share = (step - sampled.step) * self.job.config.batch_size, self._share(sampled)
            batch = sampled.batch._replace(numbers=[number + shift for number in sampled.batch.numbers])
            noise, times = batch.noise(self.job.seed, "critic_score_noise"), self._score_times(batch, "critic_score")
            with self._autocast():
                critic = conditional(self.critic, self.texts(batch.prompts))
                loss = flow_matching_loss(critic, sampled.x0, noise, times) * share
            backward(loss, step)
            add(values, {"critic_loss": loss, **{name: value * share for name, value in sizes(sampled.x0).items()}})
        return {**values, "critic_grad_norm": self.critic_optimizer.step(step)}

    def _teacher(self, text: torch.Tensor) -> Velocity:
        """The teacher's score, with guidance."""
        velocity = guided(self.teacher, text, self.texts.negative(), self.job.config.guidance_scale)
        if self.teacher is not self.critic:
            return velocity

        def plain(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            with without_adapter(self.critic):
                return velocity(x_t, timestep)

        return plain

    def _share(self, sampled: Sampled) -> float:
        """What a mean over ``sampled`` is worth in this rank's."""
        return len(sampled.x0) / len(share_of(self.job.config.batch_size))

    def _autocast(self) -> AbstractContextManager[object]:
        """One per forward: a context that outlived an optimizer step would go on with weights cast before it."""
        return devices.autocast(self.device, self.job.precision)

    def _generate(self, step: int, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """The student's x0 (line 5-6)."""
        if self.streams:
            return self._roll_out(step, batch, text, purpose)
        return self._denoise(batch, text, purpose)

    def _noisy(self, batch: Batch, purpose: str) -> torch.Tensor:
        """Which frames [B, F] of its samples are made from noise, not given."""
        if self.streams:
            return torch.ones(len(batch.latents), batch.latents.shape[2], dtype=torch.bool, device=self.device)
        return self._timesteps(batch, purpose)[1] > 0

    def _roll_out(self, step: int, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """A causal student's own clip. One exit step for the global batch: every rank makes the same passes."""
        schedule, seed, renoise = self.job.schedule, self.job.seed, count()
        channels, _, *size = batch.latents.shape[1:]
        exit_step = torch.randint(
            len(schedule.denoising_timesteps), (), generator=generator(seed, f"{purpose}_exit", step)
        )
        return rollout_with_gradient(
            cast(CausalWanTransformer3DModel, self.student),
            text,
            batch.noise(seed, f"{purpose}_noise"),
            schedule,
            lambda frames: batch.noise(seed, f"{purpose}_renoise_{next(renoise)}", (channels, frames, *size)),
            int(exit_step),
        )

    def _timesteps(self, batch: Batch, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the student's steps, or clean, every frame is given at, and its time: both [B, F].

        A block has one, also an image and a bidirectional student's clip.
        """
        frames, steps = batch.latents.shape[2], self.job.schedule.denoising_timesteps
        blocks = self.frames_per_block is not None and frames > 1
        layout = BlockLayout(frames=frames, frames_per_block=(self.frames_per_block if blocks else None) or frames)
        times = torch.tensor([*steps, *([0.0] if blocks else [])], dtype=torch.float64)
        draws = [generator(self.job.seed, purpose, number) for number in batch.numbers]
        chosen = torch.stack([block_choices(layout, len(times), draw) for draw in draws])
        return chosen, times[chosen].to(self.device)

    def _denoise(self, batch: Batch, text: torch.Tensor, purpose: str) -> torch.Tensor:
        """x0 in one pass, each block at one of the student's steps or given clean, as context for later ones."""
        chosen, timestep = self._timesteps(batch, purpose)
        sigma, student = sigma_of(timestep), conditional(self.student, text)
        if self.rolls_out:
            x_t = self._simulate(batch, student, chosen[:, 0], purpose)
        else:
            x_t = add_noise(batch.latents, batch.noise(self.job.seed, f"{purpose}_noise"), sigma)
        return velocity_to_x0(x_t, student(x_t, timestep), sigma)

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


def add(values: dict[str, torch.Tensor], more: Mapping[str, torch.Tensor]) -> None:
    """Each of ``more`` to the one of its name in ``values``."""
    for name, value in more.items():
        values[name] = values[name] + value.detach() if name in values else value.detach()


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
    record = job.record(step.frames_per_block)
    train(step, job, previews_of(job, step.average.module, step.texts.store, record))
