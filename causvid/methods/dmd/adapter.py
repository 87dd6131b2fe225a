"""A LoRA adapter (arXiv 2106.09685) on a frozen transformer, which can be disabled for a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig

from causvid.runtime.seeding import derive_seed
from causvid.wan.transformer.wan import LAYER_MATRICES, Transformer


def with_adapter(model: Transformer, rank: int, seed: int) -> Transformer:
    """Freeze ``model`` and add a trainable adapter of ``rank``, random by ``seed``, that has no effect at first."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYER_MATRICES))
    return model


@contextmanager
def without_adapter(model: Transformer) -> Iterator[None]:
    """Disable the adapter of ``model`` inside the ``with`` statement.

    peft also makes the adapter's weights untrainable. They are made trainable again at once, because DDP and FSDP look
    for trainable weights in their first forward pass, which may be one without the adapter.
    """
    trains = [weight for weight in model.parameters() if weight.requires_grad]
    model.disable_adapters()
    for weight in trains:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        model.enable_adapters()
