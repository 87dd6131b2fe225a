"""Select the device of tensors, and apply the precision of matrix products. No other file mentions CUDA."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from causvid.compute.precision import Precision


def pick() -> torch.device:
    """Return the GPU whose index is the local rank of this process, or the CPU if there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context in which matrix products are computed in ``precision``. Weights and losses keep their dtype."""
    return nullcontext() if precision is Precision.FLOAT32 else torch.autocast(device.type, dtype=precision.dtype)


def synchronize(device: torch.device) -> None:
    """Wait until all queued work on ``device`` is done, so that a measured time includes that work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """Return the peak tensor memory of ``device`` in bytes since ``forget_peak_memory``; None for a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak_memory(device: torch.device) -> None:
    """Release the unused memory of ``device``, and reset the measured peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def describe(device: torch.device) -> str:
    """Return the name of the device for reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
