"""Where tensors live and in which precision they are multiplied. The only file of the project that says "cuda"."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum

import torch


class Precision(StrEnum):
    """Params entry ``model.precision``: of matrix products."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of that name."""
        return {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}[self]


def pick() -> torch.device:
    """The accelerator of this process (its local rank's), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in ``precision``; weights, losses and conversions stay as they are."""
    return nullcontext() if precision is Precision.FLOAT32 else torch.autocast(device.type, dtype=precision.dtype)


def synchronize(device: torch.device) -> None:
    """Wait until queued work on ``device`` is done, so that a clock read after it is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes of tensors ``device`` has held since ``forget_peak_memory``; of a CPU nobody knows."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak_memory(device: torch.device) -> None:
    """Give unused memory back and begin anew to look for the peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def describe(device: torch.device) -> str:
    """The device in words, for reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
