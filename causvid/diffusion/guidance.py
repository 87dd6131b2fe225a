"""Compute classifier-free guidance. All code of this project uses this definition of the guidance scale."""

from __future__ import annotations

import torch


def guide(uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
    """Return uncond + scale (cond - uncond). Scale 1 gives the conditional prediction, scale 0 the unconditional one.

    The original CausVid code computes cond + s (cond - uncond) in DMD, with s = scale - 1.
    """
    return uncond + scale * (cond - uncond)
