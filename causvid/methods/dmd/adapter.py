"""A LoRA adapter (arXiv 2106.09685) on a frozen transformer, with which and without which it can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from causvid.runtime.seeding import derive_seed

# Of a Wan layer: both attentions' projections and the feed-forward's two matrices.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def with_adapter(model: WanTransformer3DModel, rank: int, seed: int) -> WanTransformer3DModel:
    """``model`` with an adapter of ``rank``, all of it that trains: random by ``seed``, and at first without effect."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    return model


@contextmanager
def without_adapter(model: WanTransformer3DModel) -> Iterator[None]:
    """``model`` as it was before it got its adapter.

    What trains stays what trains: DDP and FSDP look for it in their first pass, and peft would say that nothing does.
    """
    trains = [weight for weight in model.parameters() if weight.requires_grad]
    model.disable_adapters()
    for weight in trains:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        model.enable_adapters()
