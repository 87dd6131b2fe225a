"""The cost of DMD: FLOPs of its updates, memory and network traffic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from causvid.costs import SINGLE, TRAINED, Clip, Row, Workers
from causvid.methods.dmd.config import DmdConfig, Inputs


@dataclass(frozen=True, kw_only=True)
class DmdCost:
    """Cost of DMD on one clip.

    Attributes:
        clip: The clip and its transformer.
        config: Params section ``train_dmd``.
        few_steps: Steps of the student.
        causal: Whether the student is causal.
    """

    clip: Clip
    config: DmdConfig
    few_steps: int
    causal: bool

    @property
    def rolls_out(self) -> bool:
        """Whether the student is a causal one that makes its clips block by block."""
        return self.causal and self.config.inputs == Inputs.ROLLOUT

    @property
    def student(self) -> float:
        """FLOPs of a student update: both scores, the backward pass, and the samples if they are not shared."""
        update = self.clip.causal.training - self.clip.causal.forward + self._scores
        return update if self.config.turns.shared else update + self._samples

    @property
    def critic(self) -> float:
        """FLOPs of a critic update with its share of the samples."""
        samples = self._samples / self.config.turns.ratio if self.config.turns.shared else self._samples
        training = self.clip.bidirectional.training
        if self.config.critic_lora_rank is not None:
            # Frozen weights need no gradient, but their inputs do.
            training += 3 * self._adapter_pass - self.clip.bidirectional.linear
        return training + samples

    @property
    def adapter(self) -> int:
        """Number of weights in the critic's adapter; 0 without one."""
        rank = self.config.critic_lora_rank
        return 0 if rank is None else self.clip.transformer.adapter_parameters(rank)

    def row(self, workers: Workers) -> Row:
        """Return the cost of the stage ``train_dmd``."""
        config, updates = self.config, self.config.turns.student_updates(self.config.steps)
        exchanges = self._student_micro_batches(workers.exchanges)
        student = workers.traffic(updates * exchanges, other_passes=self.untrained_passes() * exchanges)
        critic = workers.traffic(config.steps * workers.exchanges, trained=self.adapter or None)
        return Row(
            stage="train_dmd",
            work=f"{config.steps} critic and {updates} student updates",
            flops=config.batch_size * (updates * self.student + config.steps * self.critic),
            memory=self._memory(workers),
            disk=SINGLE * workers.weights,
            network=student + critic,
        )

    def _memory(self, workers: Workers) -> float:
        """Return the peak memory of a worker: the student, its average and the critic in training, the teacher.

        A critic with an adapter is the teacher itself, and only its adapter is trained. Frozen weights that every
        worker holds whole are kept in the precision of the products.
        """
        networks, waiting = 1 if self.adapter else 2, 1 if self.config.turns.shared else 0
        frozen = workers.value_bytes if workers.shards == 1 else SINGLE / workers.shards
        trained = workers.memory(self.config.batch_size, networks, waiting=waiting)
        adapter = TRAINED * self.adapter / workers.shards
        return trained + frozen * workers.weights + adapter + self.rollout_cache(workers)

    def rollout_cache(self, workers: Workers) -> float:
        """Return the bytes of the cache in which a worker rolls out one micro-batch, in float32 as the weights."""
        if not self.rolls_out:
            return 0.0
        at_once = workers.count * self._student_micro_batches(workers.micro_batches)
        clips = max(1, self.config.batch_size // at_once)
        return clips * self.clip.transformer.kv_cache_bytes(self.clip.tokens, SINGLE)

    def _student_micro_batches(self, count: int) -> int:
        """Return the number of micro-batches of a student update if other updates have ``count``."""
        return 1 if self.config.turns.shared else count

    def untrained_passes(self) -> float:
        """Return the forward passes without a backward pass in the whole training.

        They generate the samples, and evaluate the critic and the teacher in student updates.
        """
        before, turns, steps = self.few_steps - 1, self.config.turns, self.config.steps
        passes = 1.0  # for one batch of samples
        if self.rolls_out:
            passes = self.clip.layout.blocks * (before / 2 + 2) - 1
        elif self.config.inputs == Inputs.ROLLOUT:
            passes += before
        return turns.batches(steps) * passes + 2 * turns.student_updates(steps)

    @cached_property
    def _samples(self) -> float:
        """FLOPs of one sample of the student."""
        before = self.few_steps - 1
        samples = self.clip.causal.forward
        if self.rolls_out:
            # A rollout exits at a random step, half of them on average. Every block but the last enters the cache.
            passes = [self.clip.block_pass(block) for block in range(self.clip.layout.blocks)]
            samples += before / 2 * sum(passes) + sum(passes[:-1])
        elif self.config.inputs == Inputs.ROLLOUT:
            samples += before * self.clip.causal.forward
        return samples

    @property
    def _scores(self) -> float:
        """FLOPs of the scores in a student update: the critic's, and the teacher's one or two (with guidance)."""
        passes = 2 if self.config.guidance_scale == 1 else 3
        return passes * self.clip.bidirectional.forward + self._adapter_pass

    @property
    def _adapter_pass(self) -> float:
        """FLOPs of the adapter in one forward pass; 0 without one."""
        rank = self.config.critic_lora_rank
        return 0.0 if rank is None else self.clip.transformer.adapter(self.clip.tokens, self.clip.text_tokens, rank)
