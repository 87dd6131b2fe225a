"""Fit the bidirectional teacher: flow matching with prompt dropout (for guidance) and a weight average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from causvid.data.latent_store import LatentStore
from causvid.data.prompt_store import PromptStore
from causvid.diffusion.timesteps import stratified_timestep
from causvid.diffusion.velocity import conditional
from causvid.losses.flow_matching import flow_matching_loss
from causvid.models.pretrained import Init
from causvid.models.wan import build_transformer, for_training, load_transformer
from causvid.runtime import device as devices
from causvid.runtime.distributed import replicate
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker
from causvid.training.batches import Texts, read_batch
from causvid.training.checkpoint import Stateful
from causvid.training.optimizers import Optimizer, OptimizerConfig, is_block_matrix
from causvid.training.trainer import train


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Params section ``train_teacher``. steps 0 takes the initial weights as they are; batch_size is global."""

    init: Init
    steps: NonNegativeInt
    batch_size: PositiveInt
    optimizer: OptimizerConfig
    prompt_dropout: float
    ema_decay: float
    checkpoint_every: PositiveInt


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """What a worker needs to train the teacher; the result is the diffusers folder ``work``/export."""

    config: TeacherConfig
    transformer: Mapping[str, Any]
    shift: float
    seed: int
    precision: devices.Precision
    gradient_checkpointing: bool
    latents: Path
    prompts: Path
    work: Path
    tracker: Tracker


class TeacherStep:
    """One optimizer step of the teacher."""

    def __init__(self, job: TeacherJob) -> None:
        self.job, self.device = job, devices.pick()
        self.store = LatentStore(job.latents)
        self.texts = Texts(PromptStore(job.prompts), self.device, job.latents if job.config.steps else None)
        found = job.config.init.locate("transformer")
        model = load_transformer(found) if found else build_transformer(job.transformer, job.seed)
        model = for_training(model, self.device, job.gradient_checkpointing)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(job.config.ema_decay))
        self.model = replicate(model)  # after the copy: a replica cannot be copied
        self.optimizer = Optimizer(self.model, job.config.optimizer, steps=job.config.steps, is_matrix=is_block_matrix)

    def parts(self) -> dict[str, Stateful]:
        """Teacher, its average, its optimizer."""
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def export(self, folder: Path) -> None:
        """The weight average."""
        model: Any = self.average.module
        model.save_pretrained(folder)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Flow matching on one batch; times cover the schedule evenly within the global batch."""
        job, size = self.job, self.job.config.batch_size
        batch = read_batch(self.store, seed=job.seed, step=step, size=size, device=self.device)
        draws = [generator(job.seed, "teacher", number) for number in batch.numbers]
        times = [
            stratified_timestep(number % size, size, job.shift, draw)
            for number, draw in zip(batch.numbers, draws, strict=True)
        ]
        dropped = [torch.rand((), generator=draw).item() < job.config.prompt_dropout for draw in draws]
        negative = self.texts.store.negative
        text = self.texts([negative if drop else p for p, drop in zip(batch.prompts, dropped, strict=True)])
        with devices.autocast(self.device, job.precision):
            loss = flow_matching_loss(
                conditional(self.model, text),
                batch.latents,
                batch.noise(job.seed, "teacher_noise"),
                torch.stack(times).to(self.device),
            )
        loss.backward()
        norm = self.optimizer.step(step)
        self.average.update_parameters(self.model)
        return {"loss": loss, "grad_norm": norm}


def train_teacher(job: TeacherJob) -> None:
    """Train the teacher of ``job`` on every rank."""
    config = job.config
    train(
        TeacherStep(job),
        steps=config.steps,
        checkpoint_every=config.checkpoint_every,
        work=job.work,
        tracker=job.tracker,
    )
