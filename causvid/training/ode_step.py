"""ODE initialisation: fit the student to the teacher's trajectories (CausVid sec. 4.3, eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from pydantic import NonNegativeInt, PositiveInt

from causvid.data.latent_store import LatentStore
from causvid.data.prompt_store import PromptStore
from causvid.diffusion.schedule import COLUMN_TOLERANCE, ScheduleConfig
from causvid.diffusion.timesteps import block_choices
from causvid.diffusion.velocity import conditional
from causvid.losses.ode_regression import ode_regression_loss
from causvid.models.pretrained import Init
from causvid.models.wan import for_training, load_transformer, student_of
from causvid.record import StudentRecord
from causvid.runtime import device as devices
from causvid.runtime.distributed import weight_of
from causvid.runtime.parallel import Compute
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker, Watch
from causvid.training.batches import Batch, Texts, accumulate, read_batch
from causvid.training.checkpoint import Stateful
from causvid.training.networks import averaged, save_whole, spread
from causvid.training.optimizers import Optimizer, OptimizerConfig, is_block_matrix
from causvid.training.previews import previews_of
from causvid.training.recording import Clips, student_record
from causvid.training.speed import Work, clip_of
from causvid.training.trainer import train


@dataclass(frozen=True, kw_only=True)
class OdeConfig:
    """Params section ``train_ode_init``. batch_size is global; init: a student, else it starts as the teacher."""

    init: Init
    steps: NonNegativeInt
    batch_size: PositiveInt
    optimizer: OptimizerConfig
    ema_decay: float
    checkpoint_every: PositiveInt


@dataclass(frozen=True, kw_only=True)
class OdeJob:
    """What a worker needs to fit the student; the result is the diffusers folder ``work``/export."""

    config: OdeConfig
    schedule: ScheduleConfig
    frames_per_block: int | None
    seed: int
    precision: devices.Precision
    compute: Compute
    pairs: Path
    clips: Clips
    prompts: Path
    teacher: Path
    work: Path
    tracker: Tracker
    watch: Watch
    made_from: Mapping[str, str]
    vae: Path

    def record(self) -> StudentRecord:
        """Return the training record of the student."""
        return student_record(self.clips, self.schedule, self.prompts, self.precision, self.frames_per_block)


class OdeStep:
    """One optimizer step of ODE regression."""

    def __init__(self, job: OdeJob) -> None:
        self.job, self.device = job, devices.pick()
        self.store = LatentStore(job.pairs)
        self.texts = Texts(PromptStore(job.prompts), self.device, job.pairs if job.config.steps else None)
        self.store.require_timesteps([*job.schedule.denoising_timesteps, 0.0], COLUMN_TOLERANCE)
        self.timesteps = torch.tensor([*job.schedule.denoising_timesteps, 0.0], dtype=torch.float64)
        student, shape = self._initial(), self.store.metadata["shape"][1:]
        self.clip = clip_of(student.config, shape, job.frames_per_block, self.texts.length)
        # A clean block is context for later ones; a bidirectional student has but one.
        self.choices = len(self.timesteps) - (0 if job.frames_per_block else 1)
        student = for_training(student, job.compute.gradient_checkpointing, compiled=job.compute.compile)
        self.average = averaged(student, job.config.ema_decay, job.compute)
        self.model = spread(student, job.compute, job.precision)
        self.optimizer = Optimizer(self.model, job.config.optimizer, steps=job.config.steps, is_matrix=is_block_matrix)

    def _initial(self) -> WanTransformer3DModel:
        """The student before training. Raises ValueError for one whose blocks are not model.frames_per_block."""
        found = self.job.config.init.locate("transformer")
        if found is None:
            return student_of(load_transformer(self.job.teacher), self.job.frames_per_block)
        student = load_transformer(found)
        blocks = student.config.get("frames_per_block")
        if blocks != self.job.frames_per_block:
            raise ValueError(
                f"train_ode_init.init is {found} with frames_per_block {blocks}; model.frames_per_block is "
                f"{self.job.frames_per_block} (null = bidirectional): change one of them"
            )
        return student

    def parts(self) -> dict[str, Stateful]:
        """Student, its average, its optimizer."""
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def export(self, folder: Path) -> None:
        """The weight average."""
        save_whole(self.average.module, folder, self.job.record())

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Every block at a state of its own (the clean end among them), one regression towards the clean end."""
        job = self.job
        batch = read_batch(self.store, seed=job.seed, step=step, size=job.config.batch_size, device=self.device)
        parts = batch.micro_batches(job.compute.gradient_accumulation_steps)
        # The loss is a mean over noisy frames, and ranks and parts have different numbers of them.
        noisy = self._noisy(self._choices(batch))
        loss = accumulate(self.model, parts, lambda part: self._loss(part, noisy), step)
        norm = self.optimizer.step(step)
        self.average.update_parameters(self.model)
        return {"loss": loss, "grad_norm": norm}

    def _choices(self, batch: Batch) -> torch.Tensor:
        """Which of its trajectory's states every frame is given at: indices [b, F]."""
        draws = [generator(self.job.seed, "ode", number) for number in batch.numbers]
        return torch.stack([block_choices(self.clip.layout, self.choices, draw) for draw in draws])

    def _noisy(self, chosen: torch.Tensor) -> torch.Tensor:
        return (self.timesteps[chosen] > 0).sum().to(self.device, torch.float32)

    def _loss(self, batch: Batch, noisy: torch.Tensor) -> torch.Tensor:
        """The batch's share of the loss of all ``noisy`` frames of this rank."""
        chosen = self._choices(batch)
        states = pick_states(batch.latents, chosen.to(self.device))
        with devices.autocast(self.device, self.job.precision):
            loss = ode_regression_loss(
                conditional(self.model, self.texts(batch.prompts)),
                states,
                self.timesteps[chosen].to(self.device),
                batch.latents[:, -1],
            )
        return loss * weight_of(self._noisy(chosen), noisy)

    def work(self, step: int) -> Work:
        """A forward and backward pass of each sample."""
        size = self.job.config.batch_size
        return Work(size, size * self.clip.tokens, size * self.clip.causal.training)


def pick_states(trajectory: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Frame f of sample b from state ``chosen[b, f]`` of ``trajectory`` [B, T, C, F, H, W]; returns [B, C, F, H, W]."""
    batch, _, _, frames, _, _ = trajectory.shape
    rows = torch.arange(batch, device=trajectory.device)[:, None]
    columns = torch.arange(frames, device=trajectory.device)[None]
    return trajectory.transpose(2, 3)[rows, chosen, columns].transpose(1, 2).contiguous()


def train_ode_init(job: OdeJob) -> None:
    """Fit the student of ``job`` on every rank; zero steps export the teacher's weights as a student."""
    step = OdeStep(job)
    train(step, job, previews_of(job, step.average.module, step.texts.store, job.record()))
