"""Train the student by distribution matching distillation from the bidirectional teacher (CausVid algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from causvid.compute import device as devices
from causvid.data.stores.latent_store import LatentStore
from causvid.data.stores.prompt_store import PromptStore
from causvid.methods.dmd.cost import DmdCost
from causvid.methods.dmd.critic import scores_of
from causvid.methods.dmd.loss import dmd_loss
from causvid.methods.dmd.samples import DmdRun, Samples, Source, source_class
from causvid.methods.previews import previews_of
from causvid.methods.shared.batches import Batch, Texts, read_batch
from causvid.methods.shared.flow_matching import flow_matching_loss
from causvid.methods.shared.networks import Trainee
from causvid.methods.shared.timesteps import score_timestep
from causvid.runtime.seeding import generator
from causvid.speed import Counts, clip_of
from causvid.training.checkpoint import Stateful
from causvid.training.datasets import sample_index
from causvid.training.distributed import share_of, weight_of
from causvid.training.optimizers import backward
from causvid.training.trainer import train
from causvid.wan.transformer.wan import load_transformer

SATURATED = 3.0  # in standard deviations of the latents; in a normal distribution, 0.3 % of the values are beyond 3


class DmdStep:
    """A training step with one critic update and, in some steps, one student update (algorithm 1)."""

    def __init__(self, run: DmdRun) -> None:
        config = run.config
        self.run, self.device, self.accumulation = run, devices.pick(), run.compute.gradient_accumulation_steps

        # Data: latents and prompts.
        latents, prompts, source = run.inputs["latents"], PromptStore(run.inputs["prompts"]), source_class(run)
        self.store, self.captions = LatentStore(latents), prompts.captions
        self.texts = Texts(prompts, self.device, latents if config.steps and source.needs_latents else None)

        # Networks: the student, then the critic and the teacher.
        self.student = Trainee(
            load_transformer(run.inputs["student"]), run, config.student_optimizer, ema_decay=config.ema_decay
        )
        blocks = self.student.frames_per_block
        if blocks != run.record.frames_per_block:
            raise ValueError(
                f"{run.inputs['student']} has blocks of {blocks} latent frames, and its training record says "
                f"{run.record.frames_per_block}; train it again"
            )
        self.scores = scores_of(run)
        self.critic = self.scores.critic
        self.source: Source = source(run, self.student)
        self.shared: Samples | None = None
        self.clip = clip_of(self.student.model.config, self.store.metadata["shape"], blocks, self.texts.length)

    def state(self) -> dict[str, Stateful]:
        """Return the student, its weight average, the critic and both optimizers. The teacher is constant."""
        return {**self.student.state("student_"), **self.critic.state("critic_")}

    def export(self, folder: Path) -> None:
        """Save the student's weight average."""
        self.student.export(folder, self.run.record)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Do one iteration of algorithm 1. ``Turns`` explains the order of the updates."""
        turns = self.run.config.turns
        if turns.shared:
            samples = self._shared(turns.sampling_step(step))
            values = self._update_critic(step, samples.micro_batches(self.accumulation))
            if turns.updates_student(step):
                self.shared = None
                values |= self._update_student(step, [samples])
            return values
        values = {}
        if turns.updates_student(step):
            values = self._update_student(step, self._samples(step, "student"))
        return values | self._update_critic(step, self._samples(step, "critic"))

    # Samples of the student (lines 4 to 6).

    def _shared(self, step: int) -> Samples:
        """Return the samples of the cycle that begins with ``step``.

        The whole batch is generated together, not in micro-batches, because the student update at the end of the
        cycle needs the graph of all samples.
        """
        if self.shared is None or self.shared.step != step:
            batch = self._read(step)
            self.shared = self._sample(
                step, batch, batch, "critic", gradient=self.run.config.turns.needs_gradient(step)
            )
        return self.shared

    def _samples(self, step: int, purpose: Literal["student", "critic"]) -> Iterator[Samples]:
        """Yield the samples for one update in micro-batches. Samples for a student update have a gradient."""
        batch = self._read(step)
        for number, micro_batch in enumerate(batch.micro_batches(self.accumulation), start=1):
            if purpose == "student":
                self.student.synchronize(number == self.accumulation)
            yield self._sample(step, batch, micro_batch, purpose, gradient=purpose == "student")

    def _read(self, step: int) -> Batch:
        """Return the batch of clips and prompts of ``step``."""
        run = self.run
        batch = read_batch(self.store, seed=run.seed, step=step, size=run.config.batch_size, device=self.device)
        if not self.source.needs_latents:  # any prompt can be used, and only the size of the latents matters
            batch = batch._replace(
                prompts=[self.captions[sample_index(run.seed, n, len(self.captions))] for n in batch.numbers]
            )
        if torch.rand((), generator=generator(run.seed, "image_batch", step)) < run.config.image_share:
            batch = batch._replace(latents=batch.latents[:, :, :1])  # the first latent frame encodes one image
        return batch

    def _sample(self, step: int, batch: Batch, micro_batch: Batch, purpose: str, *, gradient: bool) -> Samples:
        with torch.set_grad_enabled(gradient), self._autocast():
            x0 = self.source(step, micro_batch, self.texts(micro_batch.prompts), purpose)
        noisy = self.source.noisy(micro_batch, purpose)
        return Samples(step, micro_batch, x0, noisy, self.source.noisy(batch, purpose).sum())

    # The update of the student (lines 7 to 10).

    def _update_student(self, step: int, samples: Iterable[Samples]) -> dict[str, torch.Tensor]:
        values: dict[str, torch.Tensor] = {}
        all_count = self.run.config.clean_frames_in_loss
        for sample in samples:
            batch, share = sample.batch, self._share(sample)
            text = self.texts(batch.prompts)
            with self._autocast():
                out = dmd_loss(
                    sample.x0,
                    batch.noise(self.run.seed, "student_score_noise"),
                    self._score_times(batch, "student_score"),
                    teacher=self.scores.teacher(text, self.texts.negative()),
                    critic=self.critic.velocity(text),
                    scored=None if all_count else sample.noisy,
                )
            weight = share if all_count else weight_of(sample.noisy.sum(), sample.noisy_frames)
            loss = out.loss * weight
            backward(loss, step)
            found = {"student_loss": loss, "dmd_gradient": out.gradient_size * weight}
            add(values, {**found, "dmd_normaliser": out.normaliser * share})
        return {**values, "student_grad_norm": self.student.step(step)}

    # The update of the critic (lines 11 to 14).

    def _update_critic(self, step: int, samples: Iterable[Samples]) -> dict[str, torch.Tensor]:
        """Do a flow-matching step on samples of this or an earlier step, with timesteps and noise of ``step``."""
        values: dict[str, torch.Tensor] = {}
        for number, sample in enumerate(samples, start=1):
            self.critic.synchronize(number == self.accumulation)
            shift, share = (step - sample.step) * self.run.config.batch_size, self._share(sample)
            batch = sample.batch._replace(numbers=[key + shift for key in sample.batch.numbers])
            noise, times = batch.noise(self.run.seed, "critic_score_noise"), self._score_times(batch, "critic_score")
            with self._autocast():
                critic = self.critic.velocity(self.texts(batch.prompts))
                loss = flow_matching_loss(critic, sample.x0, noise, times) * share
            backward(loss, step)
            add(values, {"critic_loss": loss, **{name: value * share for name, value in sizes(sample.x0).items()}})
        return {**values, "critic_grad_norm": self.critic.step(step)}

    # Helpers of both updates.

    def _share(self, samples: Samples) -> float:
        """Return the number of ``samples`` divided by the number of samples in this rank's batch."""
        return len(samples.x0) / len(share_of(self.run.config.batch_size))

    def _autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of one forward pass. After a weight update, its cached casts would be wrong."""
        return devices.autocast(self.device, self.run.precision)

    def _score_times(self, batch: Batch, purpose: str) -> torch.Tensor:
        """Draw the score timestep of each sample [B]."""
        config = self.run.config
        times = [
            score_timestep(config.score_shift, *config.score_timesteps, generator(self.run.seed, purpose, number))
            for number in batch.numbers
        ]
        return torch.stack(times).to(self.device)

    def counts(self, step: int) -> Counts:
        """Return the counts of the updates in ``step``. A batch of images is counted like a batch of clips."""
        config = self.run.config
        few_steps = len(self.run.record.schedule.denoising_timesteps)
        causal = self.run.record.frames_per_block is not None
        scored = self.clip.in_blocks_of(self.critic.frames_per_block)
        cost = DmdCost(clip=self.clip, config=config, few_steps=few_steps, causal=causal, scored=scored)
        flops = cost.critic + (cost.student if config.turns.updates_student(step) else 0.0)
        return Counts(config.batch_size, config.batch_size * self.clip.tokens, config.batch_size * flops)


def add(values: dict[str, torch.Tensor], more: Mapping[str, torch.Tensor]) -> None:
    """Add each value of ``more`` to the value of the same name in ``values``."""
    for name, value in more.items():
        values[name] = values[name] + value.detach() if name in values else value.detach()


def sizes(x0: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measure the absolute values of samples, to detect saturation.

    Args:
        x0: Samples [B, C, F, H, W].

    Returns:
        For every latent frame: the mean of abs(x0), and the share of values whose abs(x0) is above ``SATURATED``.
    """
    large = x0.detach().abs().transpose(1, 2).flatten(2)  # [B, F, C H W]
    means, shares = large.mean((0, 2)), (large > SATURATED).float().mean((0, 2))
    return {
        f"{name}/frame_{frame:02d}": value
        for name, values in (("x0_abs", means), ("x0_saturated", shares))
        for frame, value in enumerate(values)
    }


def train_dmd(run: DmdRun) -> None:
    """Distil the student on every rank. With zero steps, the initial student is exported unchanged."""
    step = DmdStep(run)
    train(step, run, previews_of(run, step.student, step.texts.store))
