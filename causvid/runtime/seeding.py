"""Randomness as a function: every draw comes from a generator made of named keys, never from global state.

A generator made of (seed, purpose, step, global index) is the same on every worker and after every resume, so there is
no random state to save and a result does not depend on how many workers made it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # deriving a seed, all that many workers do, needs no torch
    import torch


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed that depends on every key and their order."""
    digest = hashlib.sha256("/".join(f"{type(key).__name__}:{key}" for key in keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by ``derive_seed(*keys)``; CPU so that draws are the same on every device."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*keys))


def normal(size: tuple[int, ...], *keys: int | str) -> torch.Tensor:
    """Standard normal float32 noise of ``size`` from ``generator(*keys)``."""
    import torch

    return torch.randn(size, generator=generator(*keys))
