"""Where tensors live. The only file of the project that says "cuda"."""

from __future__ import annotations

import torch


def pick(local_rank: int = 0) -> torch.device:
    """The accelerator of this process, or the CPU."""
    return torch.device("cuda", local_rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")


def has_accelerator() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available()


def synchronize(device: torch.device) -> None:
    """Wait until queued work on ``device`` is done, so that a clock read after it is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """The device in words, for reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
