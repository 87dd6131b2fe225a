"""Classifier-free guidance, in the one convention of this project."""

from __future__ import annotations

import torch


def guide(uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
    """uncond + scale (cond - uncond): scale 1 is the conditional prediction, 0 the unconditional one.

    The released DMD code writes cond + s (cond - uncond); its s is our scale - 1.
    """
    return uncond + scale * (cond - uncond)
