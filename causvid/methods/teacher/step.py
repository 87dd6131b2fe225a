"""Train the teacher by flow matching (CausVid eq. 3), with prompt dropout for guidance and a weight average.

The training of a causal teacher uses diffusion forcing (CausVid sec. 4.2): every block has a separate timestep.
Without initial weights in ``init``, a causal teacher starts from the folder ``Run.inputs["start"]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from causvid.compute import device as devices
from causvid.data.stores.latent_store import LatentStore
from causvid.data.stores.prompt_store import PromptStore
from causvid.methods.shared.batches import Batch, Texts, accumulate, read_batch
from causvid.methods.shared.flow_matching import flow_matching_loss
from causvid.methods.shared.networks import Trainee
from causvid.methods.shared.timesteps import stratified_block_timesteps, stratified_timestep
from causvid.methods.teacher.config import TeacherConfig
from causvid.record import TeacherRecord
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import BlockLayout
from causvid.speed import Counts, clip_of
from causvid.training.checkpoint import Stateful
from causvid.training.run import Run
from causvid.training.trainer import train
from causvid.wan.transformer.wan import Transformer, build_transformer, load_start

TeacherRun = Run[TeacherConfig, TeacherRecord]


class TeacherStep:
    """An optimizer step of the teacher."""

    def __init__(self, run: TeacherRun) -> None:
        self.run, self.device = run, devices.pick()
        latents, prompts = run.inputs["latents"], PromptStore(run.inputs["prompts"])
        self.store = LatentStore(latents)
        self.texts = Texts(prompts, self.device, latents if run.config.steps else None)
        shape, blocks = self.store.metadata["shape"], run.record.frames_per_block
        self.layout = None if blocks is None else BlockLayout(frames=shape[0], frames_per_block=blocks)
        self.teacher = Trainee(self._initial(), run, run.config.optimizer, ema_decay=run.config.ema_decay)
        self.clip = clip_of(self.teacher.model.config, shape, blocks, self.texts.length)

    def _initial(self) -> Transformer:
        """Return the teacher before training. Only a bidirectional teacher can start from random weights."""
        found = self.run.config.init.locate("transformer") or self.run.inputs.get("start")
        if found is None:
            return build_transformer(self.run.network, self.run.seed)
        return load_start(found, self.run.record.frames_per_block)

    def state(self) -> dict[str, Stateful]:
        """Return the teacher's weights, their average and the optimizer."""
        return self.teacher.state()

    def export(self, folder: Path) -> None:
        """Save the weight average."""
        self.teacher.export(folder, self.run.record)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Do a flow-matching step on one batch."""
        run, count = self.run, self.run.compute.gradient_accumulation_steps
        batch = read_batch(self.store, seed=run.seed, step=step, size=run.config.batch_size, device=self.device)
        micro_batches = batch.micro_batches(count)
        loss = accumulate(self.teacher.model, micro_batches, lambda part: self._loss(step, part) / count, step)
        return {"loss": loss, "grad_norm": self.teacher.step(step)}

    def _loss(self, step: int, batch: Batch) -> torch.Tensor:
        run, negative = self.run, self.texts.store.negative
        draws = [generator(run.seed, "teacher", number) for number in batch.numbers]
        times = self._times(batch, draws) if self.layout is None else self._block_times(step, batch, self.layout)
        dropped = [torch.rand((), generator=draw).item() < run.config.prompt_dropout for draw in draws]
        text = self.texts([negative if drop else p for p, drop in zip(batch.prompts, dropped, strict=True)])
        with devices.autocast(self.device, run.precision):
            return flow_matching_loss(
                self.teacher.velocity(text),
                batch.latents,
                batch.noise(run.seed, "teacher_noise"),
                times.to(self.device),
            )

    def counts(self, step: int) -> Counts:
        """Return the counts of a training step with one forward and one backward pass."""
        size = self.run.config.batch_size
        return Counts(size, size * self.clip.tokens, size * self.clip.causal.training)

    def _times(self, batch: Batch, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Return one timestep per sample [b]. The timesteps of a global batch cover the schedule evenly."""
        size, shift = self.run.config.batch_size, self.run.record.schedule.shift
        times = [
            stratified_timestep(number % size, size, shift, draw)
            for number, draw in zip(batch.numbers, draws, strict=True)
        ]
        return torch.stack(times)

    def _block_times(self, step: int, batch: Batch, layout: BlockLayout) -> torch.Tensor:
        """Return one timestep per sample and block, repeated for each frame of the block [b, F].

        Every rank draws the timesteps of the global batch, and keeps those of the samples on this rank.
        """
        run, size = self.run, self.run.config.batch_size
        draws = [generator(run.seed, "teacher_block", step, block) for block in range(layout.blocks)]
        times = stratified_block_timesteps(layout, size, run.record.schedule.shift, draws)
        return times[[number % size for number in batch.numbers]]


def train_teacher(run: TeacherRun) -> None:
    """Train the teacher on every rank. With zero steps, the initial teacher is exported unchanged."""
    train(TeacherStep(run), run)
