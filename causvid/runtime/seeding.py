"""Draw random numbers without global state. The seed of every generator is computed from a list of keys.

The keys are, for example, (seed, purpose, step, global index). Equal keys give equal numbers on every worker and after
every resume. Therefore checkpoints contain no random state, and results do not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # processes that only derive seeds start faster without torch
    import torch


def derive_seed(*keys: int | str) -> int:
    """Return a 63-bit seed that depends on every key and on the order of the keys."""
    digest = hashlib.sha256("/".join(f"{type(key).__name__}:{key}" for key in keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator with seed ``derive_seed(*keys)``. It gives the same numbers on machines with a GPU."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*keys))


def normal(size: tuple[int, ...], *keys: int | str) -> torch.Tensor:
    """Draw standard normal noise of ``size`` in float32 from ``generator(*keys)``."""
    import torch

    return torch.randn(size, generator=generator(*keys))
