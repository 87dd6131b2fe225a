"""Fit the teacher: flow matching with prompt dropout (for guidance) and a weight average.

A causal teacher is fitted by diffusion forcing (CausVid sec. 4.2): every block at a time of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from pydantic import NonNegativeInt, PositiveInt

from causvid.data.latent_store import LatentStore
from causvid.data.prompt_store import PromptStore
from causvid.diffusion.schedule import FlowSchedule
from causvid.diffusion.timesteps import stratified_block_timesteps, stratified_timestep
from causvid.diffusion.velocity import conditional
from causvid.losses.flow_matching import flow_matching_loss
from causvid.models.pretrained import Init
from causvid.models.wan import build_transformer, causal_student, for_training, load_transformer
from causvid.record import TeacherRecord
from causvid.runtime import device as devices
from causvid.runtime.parallel import Compute
from causvid.runtime.seeding import generator
from causvid.runtime.tracking import Tracker, Watch
from causvid.shapes import BlockLayout
from causvid.training.batches import Batch, Texts, accumulate, read_batch
from causvid.training.checkpoint import Stateful
from causvid.training.networks import averaged, save_whole, spread
from causvid.training.optimizers import Optimizer, OptimizerConfig, is_block_matrix
from causvid.training.recording import Clips
from causvid.training.speed import Work, clip_of
from causvid.training.trainer import train


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Params section ``train_teacher``. steps 0 takes the initial weights as they are; batch_size is global.

    causal: whether the teacher is block-causal, with a time per block (diffusion forcing), or bidirectional; init: a
    bidirectional model, of which a causal one is made, or a causal one.
    """

    init: Init
    causal: bool
    steps: NonNegativeInt
    batch_size: PositiveInt
    optimizer: OptimizerConfig
    prompt_dropout: float
    ema_decay: float
    checkpoint_every: PositiveInt


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """What a worker needs to train the teacher; the result is the diffusers folder ``work``/export.

    frames_per_block: latent frames in a block of a causal teacher.
    """

    config: TeacherConfig
    transformer: Mapping[str, Any]
    frames_per_block: int | None
    shift: float
    seed: int
    precision: devices.Precision
    compute: Compute
    latents: Path
    clips: Clips
    prompts: Path
    work: Path
    tracker: Tracker
    watch: Watch
    made_from: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.config.causal and self.frames_per_block is None:
            raise ValueError(
                "train_teacher.causal is true and model.frames_per_block is null; a causal teacher needs the number of "
                "latent frames in a block, or set train_teacher.causal to false"
            )

    def record(self) -> TeacherRecord:
        """Return the training record of the teacher."""
        return TeacherRecord(
            schedule=FlowSchedule(shift=self.shift),
            video=self.clips.video,
            text_tokens=PromptStore(self.prompts).tokens,
            frames_per_block=self.frames_per_block if self.config.causal else None,
            precision=self.precision,
            latents=self.clips.latents,
        )


class TeacherStep:
    """One optimizer step of the teacher."""

    def __init__(self, job: TeacherJob) -> None:
        self.job, self.device = job, devices.pick()
        self.store = LatentStore(job.latents)
        self.texts = Texts(PromptStore(job.prompts), self.device, job.latents if job.config.steps else None)
        self.layout = self._layout()
        model = for_training(self._initial(), job.compute.gradient_checkpointing, compiled=job.compute.compile)
        blocks = self.layout.frames_per_block if self.layout else None
        self.clip = clip_of(model.config, self.store.metadata["shape"], blocks, self.texts.length)
        self.average = averaged(model, job.config.ema_decay, job.compute)
        self.model = spread(model, job.compute, job.precision)
        self.optimizer = Optimizer(self.model, job.config.optimizer, steps=job.config.steps, is_matrix=is_block_matrix)

    def _layout(self) -> BlockLayout | None:
        """The clips' blocks, None for a bidirectional teacher. Raises ValueError when they do not divide into any."""
        blocks = self.job.frames_per_block
        if not self.job.config.causal or blocks is None:
            return None
        return BlockLayout(frames=self.store.metadata["shape"][0], frames_per_block=blocks)

    def _initial(self) -> WanTransformer3DModel:
        """The teacher before training. Raises ValueError for a causal one whose blocks are not this run's."""
        job, found = self.job, self.job.config.init.locate("transformer")
        model = load_transformer(found) if found else build_transformer(job.transformer, job.seed)
        has, wanted = model.config.get("frames_per_block"), self.layout.frames_per_block if self.layout else None
        if has is None:
            return model if wanted is None else causal_student(model, wanted)
        if has != wanted:
            raise ValueError(
                f"train_teacher.init is {found}, a causal model with frames_per_block {has}; train_teacher.causal is "
                f"{job.config.causal} and model.frames_per_block is {job.frames_per_block}: change one of them"
            )
        return model

    def parts(self) -> dict[str, Stateful]:
        """Teacher, its average, its optimizer."""
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def export(self, folder: Path) -> None:
        """The weight average."""
        save_whole(self.average.module, folder, self.job.record())

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Flow matching on one batch."""
        job, passes = self.job, self.job.compute.gradient_accumulation_steps
        batch = read_batch(self.store, seed=job.seed, step=step, size=job.config.batch_size, device=self.device)
        loss = accumulate(self.model, batch.micro_batches(passes), lambda part: self._loss(step, part) / passes, step)
        norm = self.optimizer.step(step)
        self.average.update_parameters(self.model)
        return {"loss": loss, "grad_norm": norm}

    def _loss(self, step: int, batch: Batch) -> torch.Tensor:
        job = self.job
        draws = [generator(job.seed, "teacher", number) for number in batch.numbers]
        times = self._times(batch, draws) if self.layout is None else self._block_times(step, batch, self.layout)
        dropped = [torch.rand((), generator=draw).item() < job.config.prompt_dropout for draw in draws]
        negative = self.texts.store.negative
        text = self.texts([negative if drop else p for p, drop in zip(batch.prompts, dropped, strict=True)])
        with devices.autocast(self.device, job.precision):
            return flow_matching_loss(
                conditional(self.model, text),
                batch.latents,
                batch.noise(job.seed, "teacher_noise"),
                times.to(self.device),
            )

    def work(self, step: int) -> Work:
        """A forward and backward pass of each sample."""
        size = self.job.config.batch_size
        return Work(size, size * self.clip.tokens, size * self.clip.causal.training)

    def _times(self, batch: Batch, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """One time per sample [b]; they cover the schedule evenly within the global batch."""
        size = self.job.config.batch_size
        times = [
            stratified_timestep(number % size, size, self.job.shift, draw)
            for number, draw in zip(batch.numbers, draws, strict=True)
        ]
        return torch.stack(times)

    def _block_times(self, step: int, batch: Batch, layout: BlockLayout) -> torch.Tensor:
        """A time per sample and block [b, F]: this rank's rows of what every rank draws for the global batch."""
        job, size = self.job, self.job.config.batch_size
        draws = [generator(job.seed, "teacher_block", step, block) for block in range(layout.blocks)]
        times = stratified_block_timesteps(layout, size, job.shift, draws)
        return times[[number % size for number in batch.numbers]]


def train_teacher(job: TeacherJob) -> None:
    """Train the teacher of ``job`` on every rank."""
    train(TeacherStep(job), job)
