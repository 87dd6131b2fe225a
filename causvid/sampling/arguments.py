"""Check that the arguments of a pipeline call have the same batch size.

Without this check, PyTorch would raise an error about a shape inside the transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def require_one_batch(prompt_embeds: Any, generators: Any, negative_embeds: Any, *, text_dim: int) -> None:
    """Check the arguments of a pipeline call.

    Args:
        prompt_embeds: Must have shape [B, L, text_dim], with one prompt for each video.
        generators: Must be a sequence of B ``torch.Generator`` objects.
        negative_embeds: Must have shape [1 or B, L, text_dim], or be None.
        text_dim: Width of the embeddings that the transformer accepts.

    Raises:
        ValueError: An argument has a wrong type or shape. The message names the argument.
    """
    batch, tokens = _embeddings("prompt_embeds", prompt_embeds, text_dim)
    if not isinstance(generators, Sequence) or not all(isinstance(g, torch.Generator) for g in generators):
        raise ValueError(
            f"generators is {generators!r:.100}; expected a sequence of torch.Generator, one per video: [generator]"
        )
    if len(generators) != batch:
        raise ValueError(
            f"generators has {len(generators)} entries, prompt_embeds has {batch} prompts; give a generator per prompt"
        )
    if negative_embeds is None:
        return
    negatives = _embeddings("negative_embeds", negative_embeds, text_dim)
    if negatives not in ((1, tokens), (batch, tokens)):
        raise ValueError(
            f"negative_embeds has shape {tuple(negative_embeds.shape)}; expected {[batch, tokens, text_dim]} like "
            f"prompt_embeds, or {[1, tokens, text_dim]} for all prompts"
        )


def _embeddings(name: str, value: Any, text_dim: int) -> tuple[int, int]:
    """Return the sizes B and L of the embeddings ``value`` [B, L, text_dim]."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is {value!r:.100}; expected embeddings, as the pipeline's embed() returns them")
    if value.ndim != 3 or value.shape[2] != text_dim or 0 in value.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected [B, L, {text_dim}] with B and L at least 1")
    return value.shape[0], value.shape[1]
