"""Classifier-free guidance, in the convention that the whole project uses."""

from __future__ import annotations

import torch


def guide(uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
    """Return uncond + scale (cond - uncond). Scale 1 is the conditional prediction, scale 0 the unconditional one.

    The released DMD code computes cond + s (cond - uncond), with s = scale - 1.
    """
    return uncond + scale * (cond - uncond)
