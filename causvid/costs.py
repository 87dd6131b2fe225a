"""Define the units of cost (FLOPs, accelerators, stages), and compute memory and network traffic of a training.

``causvid/wan/costs.py`` counts the FLOPs of the models. Each method and the planner compute sums of these FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from causvid.runtime.shapes import BlockLayout

HALF, SINGLE = 2, 4  # bytes of a value: HALF in float16 or bfloat16, SINGLE in float32
# Bytes per trained weight: TRAINED for weight, gradient and two moments of Adam in float32, AVERAGED for the average.
TRAINED, AVERAGED = 4 * SINGLE, SINGLE
PREFIXES = ("", "k", "M", "G", "T", "P", "E")


class Accelerator(NamedTuple):
    """A kind of accelerator.

    Attributes:
        memory: Size of the memory in bytes.
        peak: Peak dense FLOP/s, keyed by precision.
        achieved: Typical fraction of the peak in training.
    """

    memory: float
    peak: Mapping[str, float]
    achieved: float


CPU = "CPU core"
# Source: data sheets of A100 SXM 80 GB, H100 SXM and H200 SXM (bfloat16 and TF32, dense). The CPU core is one AVX-512
# core, measured with large matrix products. Published runs of this size reached 25 % to 45 % of the peak.
KINDS = {
    "A100": Accelerator(80e9, {"bfloat16": 312e12, "float32": 156e12}, 0.35),
    "H100": Accelerator(80e9, {"bfloat16": 989e12, "float32": 494e12}, 0.35),
    "H200": Accelerator(141e9, {"bfloat16": 989e12, "float32": 494e12}, 0.35),
    CPU: Accelerator(math.inf, {"bfloat16": 410e9, "float32": 95e9}, 0.5),
}


class Flops(NamedTuple):
    """FLOPs of a forward pass: in matrix products with weights, and in attention (scores and weighted sums)."""

    linear: float
    attention: float

    @property
    def forward(self) -> float:
        """FLOPs of the forward pass."""
        return self.linear + self.attention

    @property
    def backward(self) -> float:
        """FLOPs of the backward pass.

        Products with weights count twice, for the gradients of inputs and weights. Attention counts 2.5 times, because
        the scores are computed again.
        """
        return 2 * self.linear + 2.5 * self.attention

    @property
    def training(self) -> float:
        """FLOPs of a forward and a backward pass without activation checkpointing."""
        return self.forward + self.backward


class TransformerCost(Protocol):
    """The cost of a transformer. The package of a backbone, for example ``causvid/wan``, implements this protocol."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        ...

    def forward(self, queries: int, pairs: int, text_tokens: int, text_cached: bool = False) -> Flops:
        """Return the FLOPs of a forward pass.

        Args:
            queries: Number of video tokens.
            pairs: Number of query-key pairs in the self-attention of one layer.
            text_tokens: Number of prompt tokens.
            text_cached: Whether the keys and values of the prompt are in the cache.
        """
        ...

    def kv_cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Return the bytes of the cached keys and values for ``tokens`` tokens in all layers."""
        ...

    def adapter_parameters(self, rank: int) -> int:
        """Return the number of weights in a LoRA adapter of ``rank``."""
        ...

    def adapter(self, tokens: int, text_tokens: int, rank: int) -> float:
        """Return the FLOPs of one forward pass of a LoRA adapter of ``rank``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The cost of forward passes over one clip.

    Attributes:
        transformer: Cost of the transformer.
        layout: Division of the latent frames into blocks.
        frame_tokens: Number of tokens in a latent frame.
        text_tokens: Number of tokens in the prompt.
    """

    transformer: TransformerCost
    layout: BlockLayout
    frame_tokens: int
    text_tokens: int

    @property
    def block_tokens(self) -> int:
        """Number of tokens in a block."""
        return self.frame_tokens * self.layout.frames_per_block

    @property
    def tokens(self) -> int:
        """Number of tokens in the clip."""
        return self.frame_tokens * self.layout.frames

    @cached_property
    def bidirectional(self) -> Flops:
        """FLOPs of a bidirectional model over the whole clip, in which every token attends to all tokens."""
        return self.in_blocks_of(None).causal

    @cached_property
    def causal(self) -> Flops:
        """FLOPs of a causal model over the whole clip, as in training (CausVid sec. 4.1).

        Blocks attend to themselves and to earlier blocks. With N tokens in a block, these are N^2 (1 + 2 + ...
        + blocks) query-key pairs. The clip of a bidirectional model is one block.
        """
        pairs = self.block_tokens**2 * self.layout.blocks * (self.layout.blocks + 1) // 2
        return self.transformer.forward(self.tokens, pairs, self.text_tokens)

    def in_blocks_of(self, frames_per_block: int | None) -> Clip:
        """Return the same clip in blocks of ``frames_per_block`` latent frames; None = one block."""
        frames = self.layout.frames
        return replace(self, layout=BlockLayout(frames=frames, frames_per_block=frames_per_block or frames))

    def block_pass(self, block: int, *, text_cached: bool = True) -> Flops:
        """Return the FLOPs of a forward pass over one block. The earlier blocks are in the cache.

        Args:
            block: Index of the block.
            text_cached: Whether the keys and values of the prompt are in the cache, as in generation.
        """
        pairs = self.block_tokens**2 * (block + 1)
        return self.transformer.forward(self.block_tokens, pairs, self.text_tokens, text_cached=text_cached)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cost of one stage.

    Attributes:
        stage: Name of the stage.
        work: Description of the amount of work.
        updates: Number of optimizer steps of the model that the stage trains.
        flops: FLOPs of the whole stage.
        memory: Peak bytes of one worker.
        disk: Bytes of the outputs; None = unknown before the run.
        network: Bytes that each worker sends, or that a download receives; None = unknown before the run.
    """

    stage: str
    work: str
    updates: int = 0
    flops: float = 0.0
    memory: float = 0.0
    disk: float | None = 0.0
    network: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers that train a transformer, with their memory and network traffic.

    Attributes:
        count: Number of workers.
        shards: Number of workers that share one copy of the weights; 1 = every worker has all weights.
        micro_batches: Number of micro-batches in an update (gradient accumulation).
        value_bytes: Number of bytes of one value in a matrix product (2 in bfloat16, 4 in float32).
        weights: Number of weights in the transformer.
        layers: Number of layers in the transformer.
        kept: Bytes of activations that are stored for the backward pass of one sample.
    """

    count: int
    shards: int
    micro_batches: int
    value_bytes: int
    weights: int
    layers: int
    kept: float

    @property
    def exchanges(self) -> int:
        """Number of gradient exchanges in an update: one per micro-batch with sharding, otherwise one."""
        return self.micro_batches if self.shards > 1 else 1

    def memory(self, batch: int, networks: int, *, waiting: int = 0) -> float:
        """Return the peak memory of a worker in bytes: weights, gradients, moments, one weight average, activations.

        Args:
            batch: Global batch size.
            networks: Number of trained networks.
            waiting: Number of other batches whose activations must stay in memory until their backward pass.
        """
        samples = max(1, batch // self.count // self.micro_batches) + waiting * max(1, batch // self.count)
        held = self.weights * (networks * TRAINED + AVERAGED) / self.shards
        # With sharding, the current and the next layer are gathered.
        gathered = 2 * self.value_bytes * self.weights / self.layers if self.shards > 1 else 0.0
        return held + gathered + samples * self.kept

    def traffic(self, exchanges: int, *, passes: int = 1, trained: int | None = None) -> float:
        """Return the bytes that each worker sends for gradients, and for the weights of passes with gradients.

        In a ring of n workers, each worker sends (n - 1) / n of the values to gather weights or to scatter a sum. To
        average gradients, a worker does both. With sharding, every forward pass and every backward pass gathers the
        weights in the precision of the matrix products, and each exchange scatters the gradients in float32.

        Args:
            exchanges: Number of gradient exchanges (attribute ``exchanges`` per update).
            passes: Number of forward passes with a backward pass per exchange.
            trained: Number of weights that have a gradient; None = all weights.
        """
        learned = self.weights if trained is None else trained
        if self.shards == 1:
            return exchanges * 2 * SINGLE * learned * self._sent
        gathered = self.gathering(2 * exchanges * passes, trained or 0)
        return gathered + exchanges * SINGLE * learned * self._sent

    def gathering(self, passes: float, adapter: int = 0) -> float:
        """Return the bytes that each worker sends to gather the weights for ``passes`` passes; 0 without sharding.

        Args:
            passes: Number of forward and backward passes.
            adapter: Number of weights in an adapter of the transformer.
        """
        return self.value_bytes * passes * (self.weights + adapter) * self._sent if self.shards > 1 else 0.0

    @property
    def _sent(self) -> float:
        """Share of the values that each worker sends in a ring."""
        return (self.count - 1) / self.count


def steps_in_words(steps: int) -> str:
    """Describe the work of a training with ``steps`` steps."""
    return f"{steps} steps" if steps else "0 steps: the initial weights are unchanged"


def scaled(value: float | None, unit: str) -> str:
    """Format ``value`` with three digits and a decimal prefix; '?' for None, '-' for 0."""
    if not value:
        return "?" if value is None else "-"
    step = min(max(0, math.floor(math.log10(value * 1.0005) / 3)), len(PREFIXES) - 1)
    return f"{value / 1000**step:.3g} {PREFIXES[step]}{unit}"


def duration(seconds: float) -> str:
    """Format ``seconds`` as seconds, minutes or hours, with three digits."""
    if seconds < 1:
        return "-" if seconds == 0 else "< 1 s"
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
