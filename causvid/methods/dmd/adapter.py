"""Add a LoRA adapter (arXiv 2106.09685) to a frozen transformer, and disable the adapter for a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig

from causvid.runtime.seeding import derive_seed
from causvid.wan.transformer.wan import LAYER_MATRICES, Transformer


def with_adapter(model: Transformer, rank: int, seed: int) -> Transformer:
    """Freeze ``model``, and add a trainable adapter with random weights. The initial adapter has no effect."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYER_MATRICES))
    return model


@contextmanager
def without_adapter(model: Transformer) -> Iterator[None]:
    """Disable the adapter of ``model`` inside the ``with`` statement.

    peft then also freezes the adapter's weights. This function makes them trainable again immediately, because DDP and
    FSDP search for trainable weights in the first forward pass, and this may be a forward pass without the adapter.
    """
    trains = [weight for weight in model.parameters() if weight.requires_grad]
    model.disable_adapters()
    for weight in trains:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        model.enable_adapters()
