"""A training batch: this rank's share of a global batch, drawn by position so that no worker count changes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from causvid.data.stores.latent_store import LatentStore, read_prompts
from causvid.data.stores.prompt_store import PromptStore
from causvid.runtime.seeding import normal
from causvid.training.datasets import sample_index
from causvid.training.distributed import share_of, synchronize_gradients
from causvid.training.optimizers import backward


class Batch(NamedTuple):
    """latents [b, …]; prompts; numbers: each sample's position in the whole run, the key of all its noise."""

    latents: torch.Tensor
    prompts: list[str]
    numbers: list[int]

    def noise(self, seed: int, purpose: str, size: Sequence[int] | None = None) -> torch.Tensor:
        """Standard normal noise for every sample: of its latents' size, or of ``size``."""
        shape = tuple(size if size is not None else self.latents.shape[1:])
        drawn = [normal(shape, seed, purpose, number) for number in self.numbers]
        return torch.stack(drawn).to(self.latents.device)

    def micro_batches(self, count: int) -> list[Batch]:
        """The same samples in ``count`` batches of equal size. Raises ValueError when they do not divide."""
        size, rest = divmod(len(self.numbers), count)
        if rest:
            raise ValueError(
                f"a worker's {len(self.numbers)} samples of a batch do not divide into {count} passes; change "
                "compute.gradient_accumulation_steps or the stage's batch_size"
            )
        slices = [slice(start, start + size) for start in range(0, len(self.numbers), size)]
        return [Batch(self.latents[part], self.prompts[part], self.numbers[part]) for part in slices]


def read_batch(store: LatentStore, *, seed: int, step: int, size: int, device: torch.device) -> Batch:
    """This rank's part of global batch ``step`` of ``size`` samples."""
    numbers = [step * size + position for position in share_of(size)]
    latents, prompts = store.batch([sample_index(seed, number, len(store)) for number in numbers])
    # Copied in any case: the next batch comes into the same memory.
    return Batch(latents.to(device, torch.float32, copy=True).contiguous(), prompts, numbers)


def accumulate(
    model: nn.Module, parts: Sequence[Batch], loss_of: Callable[[Batch], torch.Tensor], step: int
) -> torch.Tensor:
    """Gradients of the sum of ``loss_of`` over ``parts``, each there and back before the next; returns the sum.

    Ranks average them once, in the last one.
    """
    losses = []
    for number, part in enumerate(parts, start=1):
        synchronize_gradients(model, number == len(parts))
        losses.append(loss_of(part))
        backward(losses[-1], step)
    return torch.stack(losses).detach().sum()


class Texts:
    """Prompt embeddings on the device, read when asked for: all of a large data set's would fill the memory.

    latents: an LMDB whose prompts training will ask for, None = no training. Raises ValueError when one is missing.
    """

    def __init__(self, store: PromptStore, device: torch.device, latents: Path | None) -> None:
        if latents is not None:
            store.require(read_prompts(latents), latents)
        self.store, self.device = store, device
        self._negative = store([store.negative]).to(device)

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings [len(prompts), L, D]."""
        return self.store(prompts).to(self.device)

    @property
    def length(self) -> int:
        """L, tokens of a prompt."""
        return self._negative.shape[1]

    def negative(self) -> torch.Tensor:
        """The unconditional embedding [1, L, D]."""
        return self._negative
