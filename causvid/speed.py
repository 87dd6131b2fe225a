"""Measure the speed and memory of a training. The values differ between runs and are logged to MLflow only."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from causvid import costs
from causvid.compute import device as devices
from causvid.costs import Clip
from causvid.runtime.shapes import BlockLayout, LatentShape
from causvid.wan.costs import Transformer

KIBI = 1024  # number of bytes in the unit of ru_maxrss on Linux


class Counts(NamedTuple):
    """Number of samples, tokens and FLOPs in a training step, over all workers; ``flops`` None = not counted."""

    samples: int
    tokens: int
    flops: float | None


def clip_of(config: Mapping[str, Any], shape: Sequence[int], frames_per_block: int | None, text_tokens: int) -> Clip:
    """Return the cost of forward passes over a clip.

    Args:
        config: Config of the transformer.
        shape: Shape of the latents (F, C, H, W).
        frames_per_block: Number of latent frames in a block; None = the clip is one block.
        text_tokens: Number of tokens in a prompt.
    """
    frames, channels, height, width = shape
    transformer = Transformer.of(config)
    return Clip(
        transformer=transformer,
        layout=BlockLayout(frames=frames, frames_per_block=frames_per_block or frames),
        frame_tokens=transformer.tokens(LatentShape(channels=channels, frames=frames, height=height, width=width)),
        text_tokens=text_tokens,
    )


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of ``device`` (a CPU has one core per thread); None for an unknown GPU."""
    if device.type == "cpu":
        return torch.get_num_threads() * costs.KINDS[costs.CPU].peak[precision]
    name = next((kind for kind in costs.KINDS if kind in devices.describe(device)), None)
    return costs.KINDS[name].peak[precision] if name else None


class Speed:
    """Counts training steps, and computes their speed.

    MFU (model FLOPs utilisation) is the ratio of the achieved FLOP/s to the ``peak_flops`` of all workers. Activations
    that the backward pass computes again are counted only once.

    Args:
        precision: Precision of the matrix products, which determines the peak.
        workers: Number of workers.
    """

    def __init__(self, precision: str, workers: int) -> None:
        self.workers, self.device = workers, devices.pick()
        self.peak = peak_flops(self.device, precision)
        self._begin()

    def _begin(self) -> None:
        self.since, self.done, self.counted = time.monotonic(), Counts(0, 0, 0.0), True

    def add(self, counts: Counts) -> None:
        """Add the counts of one step."""
        self.counted &= counts.flops is not None
        before = self.done
        self.done = Counts(
            before.samples + counts.samples,
            before.tokens + counts.tokens,
            (before.flops or 0.0) + (counts.flops or 0.0),
        )

    def read(self) -> dict[str, float]:
        """Return samples and tokens per second and MFU of all workers since the last call, and this worker's memory."""
        devices.synchronize(self.device)
        seconds = max(time.monotonic() - self.since, 1e-9)
        rates = {"speed/samples_per_second": self.done.samples / seconds, "speed/peak_memory_gb": self._memory() / 1e9}
        if self.done.tokens:
            rates["speed/tokens_per_second"] = self.done.tokens / seconds
        if self.peak and self.counted and self.done.flops:
            rates["speed/mfu"] = self.done.flops / seconds / (self.workers * self.peak)
            rates["speed/mfu_peak_tflops"] = self.peak / 1e12
        self._begin()
        return rates

    def _memory(self) -> int:
        tensors = devices.peak_memory(self.device)
        return KIBI * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if tensors is None else tensors
