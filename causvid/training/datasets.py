"""Compute the order of samples from (seed, position), so that checkpoints need no state of a data loader."""

from __future__ import annotations

from functools import lru_cache

import torch

from causvid.runtime.seeding import generator


def sample_index(seed: int, position: int, size: int) -> int:
    """Return the index of a training sample in the data set. Every epoch is a new permutation of the data set.

    Args:
        seed: Seed of the permutations.
        position: Number of earlier samples in the training, over all workers.
        size: Number of samples in the data set.
    """
    epoch, offset = divmod(position, size)
    return int(_permutation(seed, epoch, size)[offset])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> torch.Tensor:
    return torch.randperm(size, generator=generator(seed, "order", epoch))
