"""Which sample a training step sees: a function of (seed, global position), so there is no loader state to save."""

from __future__ import annotations

from functools import lru_cache

import torch

from causvid.runtime.seeding import generator


def sample_index(seed: int, position: int, size: int) -> int:
    """Index of the ``position``-th sample of a run over ``size`` samples: every epoch is a new permutation."""
    epoch, offset = divmod(position, size)
    return int(_permutation(seed, epoch, size)[offset])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> torch.Tensor:
    return torch.randperm(size, generator=generator(seed, "order", epoch))
