"""Random draws without global state: every draw comes from a generator that is seeded with named keys.

A generator with the keys (seed, purpose, step, global index) is the same on every worker and after every resume.
Checkpoints therefore contain no random state, and a result does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # many workers only derive seeds, and start faster without torch
    import torch


def derive_seed(*keys: int | str) -> int:
    """Return a 63-bit seed that depends on every key and on the order of the keys."""
    digest = hashlib.sha256("/".join(f"{type(key).__name__}:{key}" for key in keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator with the seed ``derive_seed(*keys)``. Its draws are the same on machines with a GPU."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*keys))


def normal(size: tuple[int, ...], *keys: int | str) -> torch.Tensor:
    """Draw standard normal noise of ``size`` in float32 from ``generator(*keys)``."""
    import torch

    return torch.randn(size, generator=generator(*keys))
