"""Compute the cost of DMD: FLOPs, memory and network traffic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from causvid.costs import SINGLE, TRAINED, Clip, Flops, Row, Workers
from causvid.methods.dmd.config import DmdConfig, Inputs


@dataclass(frozen=True, kw_only=True)
class DmdCost:
    """Cost of DMD on one clip.

    Attributes:
        clip: The clip and its transformer.
        config: Params section ``train_dmd``.
        few_steps: Number of denoising steps of the student.
        causal: Whether the student is causal.
        scored: The clip as teacher and critic process it: in their blocks, or in one block if they are bidirectional.
    """

    clip: Clip
    config: DmdConfig
    few_steps: int
    causal: bool
    scored: Clip

    @property
    def rolls_out(self) -> bool:
        """Whether the student is causal and generates its training clips block by block."""
        return self.causal and self.config.inputs != Inputs.DATA

    @property
    def student(self) -> float:
        """FLOPs of a student update: both scores, the backward pass, and samples that are not shared."""
        update = self._backward + self._scores
        return update if self.config.turns.shared else update + self._samples

    @property
    def critic(self) -> float:
        """FLOPs of a critic update, with the samples. Shared samples are divided by the number of critic updates."""
        samples = self._samples / self.config.turns.ratio if self.config.turns.shared else self._samples
        training = self.scored.causal.training
        if self.config.critic_lora_rank is not None:
            # The backward pass computes no gradients of frozen weights, only of their inputs.
            training += 3 * self._adapter_pass - self.scored.causal.linear
        return training + samples

    @property
    def adapter(self) -> int:
        """Number of weights in the critic's adapter; 0 without an adapter."""
        rank = self.config.critic_lora_rank
        return 0 if rank is None else self.clip.transformer.adapter_parameters(rank)

    def row(self, workers: Workers) -> Row:
        """Return the cost of the stage ``train_dmd``."""
        config, updates = self.config, self.config.turns.student_updates(self.config.steps)
        exchanges = self._student_micro_batches(workers.exchanges)
        student = workers.traffic(updates * exchanges, passes=self._trained_passes)
        samples = workers.gathering(self._untrained_passes * exchanges)
        scores = workers.gathering(2 * updates * exchanges, self.adapter)
        critic = workers.traffic(config.steps * workers.exchanges, trained=self.adapter or None)
        return Row(
            stage="train_dmd",
            work=f"{config.steps} critic and {updates} student updates",
            updates=updates,
            flops=config.batch_size * (updates * self.student + config.steps * self.critic),
            memory=self._memory(workers),
            disk=SINGLE * workers.weights,
            network=student + samples + scores + critic,
        )

    def _memory(self, workers: Workers) -> float:
        """Return the peak memory of a worker in bytes, for the student, its weight average, the critic and the teacher.

        With an adapter, critic and teacher have the same frozen weights, and only the adapter is trained. If every
        worker has all frozen weights, they are stored in the precision of the matrix products. If an update has several
        backward passes, every worker stores the sums of all gradients in this precision, also with sharding.
        """
        networks, waiting = 1 if self.adapter else 2, 1 if self.config.turns.shared else 0
        frozen = workers.value_bytes if workers.shards == 1 else SINGLE / workers.shards
        trained = workers.memory(self.config.batch_size, networks, waiting=waiting)
        adapter = TRAINED * self.adapter / workers.shards
        sums = workers.value_bytes * workers.weights if workers.shards > 1 and self._trained_passes > 1 else 0
        return trained + frozen * workers.weights + adapter + sums + self.rollout_cache(workers)

    def rollout_cache(self, workers: Workers) -> float:
        """Return the bytes of the KV cache for the rollout of one micro-batch on one worker.

        If gradients flow through the cache, the activations of the context passes and the gradients of the cache are
        included. Without gradient checkpointing, autograd also stores, for each block, a concatenated copy of all
        earlier keys and values. This memory, up to five times the cache with seven blocks, is not included.
        """
        if not self.rolls_out:
            return 0.0
        at_once = workers.count * self._student_micro_batches(workers.micro_batches)
        clips, blocks = max(1, self.config.batch_size // at_once), self.clip.layout.blocks
        cache: float = self.clip.transformer.kv_cache_bytes(self.clip.tokens, workers.value_bytes)
        if self._trains_context:
            cache += (cache + workers.kept) * (blocks - 1) / blocks
        return clips * cache

    def _student_micro_batches(self, count: int) -> int:
        """Return the number of micro-batches in a student update, if other updates have ``count`` micro-batches."""
        return 1 if self.config.turns.shared else count

    @property
    def _trained_passes(self) -> int:
        """Number of the student's forward passes per update that have a backward pass.

        In a rollout, these are one pass per block and, if gradients flow through the cache, all context passes.
        """
        blocks = self.clip.layout.blocks
        if not self.rolls_out:
            return 1
        return 2 * blocks - 1 if self._trains_context else blocks

    @property
    def _untrained_passes(self) -> float:
        """Number of the student's forward passes that have no backward pass, summed over the training."""
        before, turns, steps = self.few_steps - 1, self.config.turns, self.config.steps
        passes = 1.0  # forward passes for one batch of samples
        if self.rolls_out:
            passes = self.clip.layout.blocks * (before / 2 + 2) - 1
        elif self.config.inputs != Inputs.DATA:
            passes += before
        return turns.batches(steps) * passes - turns.student_updates(steps) * self._trained_passes

    @cached_property
    def _samples(self) -> float:
        """FLOPs of one sample of the student."""
        before = self.few_steps - 1
        if self.rolls_out:
            # A rollout exits at a random step, on average after half of the steps before the last. Every block except
            # the last block then enters the cache.
            passes = [block.forward for block in self._block_passes]
            return (before / 2 + 1) * sum(passes) + sum(passes[:-1])
        passes_before = 0 if self.config.inputs == Inputs.DATA else before
        return (passes_before + 1) * self.clip.causal.forward

    @property
    def _trains_context(self) -> bool:
        """Whether the passes that write a block into the cache have a gradient."""
        return self.causal and self.config.inputs == Inputs.ROLLOUT

    @property
    def _backward(self) -> float:
        """FLOPs of the student's backward passes in an update.

        Context passes have a backward pass only if gradients flow through the cache. The last block has none.
        """
        if not self.rolls_out:
            return self.clip.causal.backward
        passes = [block.backward for block in self._block_passes]
        return sum(passes) + (sum(passes[:-1]) if self._trains_context else 0.0)

    @property
    def _block_passes(self) -> list[Flops]:
        """FLOPs of one forward pass over each block. Each pass computes the keys and values of the prompt again."""
        blocks = range(self.clip.layout.blocks)
        return [self.clip.block_pass(block, text_cached=False) for block in blocks]

    @property
    def _scores(self) -> float:
        """FLOPs of the scores in a student update. With guidance, the teacher needs two forward passes."""
        passes = 2 if self.config.guidance_scale == 1 else 3
        return passes * self.scored.causal.forward + self._adapter_pass

    @property
    def _adapter_pass(self) -> float:
        """FLOPs of the adapter in one forward pass; 0 without an adapter."""
        rank = self.config.critic_lora_rank
        return 0.0 if rank is None else self.clip.transformer.adapter(self.clip.tokens, self.clip.text_tokens, rank)
