"""Read training batches. The samples of a global batch do not depend on the number of workers."""

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
    """The samples of a global batch that this rank trains on.

    Attributes:
        latents: Latents or trajectories [b, ...].
        prompts: Prompt of each sample.
        numbers: Position of each sample in the whole run. All noise of a sample is generated from this number.
    """

    latents: torch.Tensor
    prompts: list[str]
    numbers: list[int]

    def noise(self, seed: int, purpose: str, size: Sequence[int] | None = None) -> torch.Tensor:
        """Return standard normal noise for every sample, in the size of its latents or in ``size``."""
        shape = tuple(size if size is not None else self.latents.shape[1:])
        drawn = [normal(shape, seed, purpose, number) for number in self.numbers]
        return torch.stack(drawn).to(self.latents.device)

    def micro_batches(self, count: int) -> list[Batch]:
        """Split the batch into ``count`` batches of equal size. Raises ValueError if this is not possible."""
        size, rest = divmod(len(self.numbers), count)
        if rest:
            raise ValueError(
                f"a worker's {len(self.numbers)} samples of a batch do not divide into {count} micro-batches; change "
                "compute.gradient_accumulation_steps or the stage's batch_size"
            )
        slices = [slice(start, start + size) for start in range(0, len(self.numbers), size)]
        return [Batch(self.latents[part], self.prompts[part], self.numbers[part]) for part in slices]


def read_batch(store: LatentStore, *, seed: int, step: int, size: int, device: torch.device) -> Batch:
    """Return this rank's samples of the global batch ``step``, which has ``size`` samples."""
    numbers = [step * size + position for position in share_of(size)]
    latents, prompts = store.batch([sample_index(seed, number, len(store)) for number in numbers])
    # copy=True: the store reads the next batch into the same memory.
    return Batch(latents.to(device, torch.float32, copy=True).contiguous(), prompts, numbers)


def accumulate(
    model: nn.Module, parts: Sequence[Batch], loss_of: Callable[[Batch], torch.Tensor], step: int
) -> torch.Tensor:
    """Accumulate the gradients of ``loss_of`` over the micro-batches ``parts``, and return the sum of the losses.

    The backward pass of a micro-batch runs before the forward pass of the next micro-batch. The ranks average the
    gradients only once, in the last backward pass.
    """
    losses = []
    for number, part in enumerate(parts, start=1):
        synchronize_gradients(model, number == len(parts))
        losses.append(loss_of(part))
        backward(losses[-1], step)
    return torch.stack(losses).detach().sum()


class Texts:
    """Prompt embeddings on the device. Embeddings are read on demand, because those of a data set may need much memory.

    Args:
        store: The prompt embeddings.
        device: Device of the embeddings.
        latents: LMDB whose prompts the training needs; None = no training.

    Raises:
        ValueError: The embedding of a prompt in ``latents`` is missing.
    """

    def __init__(self, store: PromptStore, device: torch.device, latents: Path | None) -> None:
        if latents is not None:
            store.require(read_prompts(latents), latents)
        self.store, self.device = store, device
        self._negative = store([store.negative]).to(device)

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings [len(prompts), L, D] of ``prompts``."""
        return self.store(prompts).to(self.device)

    @property
    def length(self) -> int:
        """Number of tokens L of a prompt."""
        return self._negative.shape[1]

    def negative(self) -> torch.Tensor:
        """Return the embedding of the negative prompt [1, L, D]."""
        return self._negative
