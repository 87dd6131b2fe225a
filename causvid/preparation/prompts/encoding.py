"""Embed every prompt of a run once, so that no training step needs the text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from causvid.compute import device as devices
from causvid.compute.precision import Precision
from causvid.data.captions import read_captions
from causvid.data.prompt_file import read_prompt_file
from causvid.data.stores.config import require_tokens
from causvid.data.stores.prompt_store import write_prompts
from causvid.harness.progress import progress
from causvid.preparation.prompts.config import PromptConfig
from causvid.training.pretrained import contents
from causvid.wan.text_encoder import (
    build_text_encoder,
    build_tokenizer,
    embed,
    load_text_encoder,
    save_text_encoder,
)

BATCH = 32


def encode_prompts(
    config: PromptConfig,
    out: Path,
    kept: Path,
    *,
    text_encoder: Mapping[str, Any],
    tokens: int,
    precision: Precision,
    seed: int,
) -> dict[str, float]:
    """Embed all prompts, and save the text encoder.

    Args:
        config: Params section ``encode_prompts``.
        out: Folder of the embeddings and the lists of prompts.
        kept: Folder of the saved text encoder and tokenizer.
        text_encoder: Configuration of the text encoder that is built if ``config.init`` has no weights.
        tokens: Number of tokens of a padded embedding.
        precision: Precision of loaded weights.
        seed: Seed of the random weights if a text encoder is built.

    Returns:
        Numbers of distinct prompts and of evaluation prompts.

    Raises:
        ValueError: Prompts or weights cannot be read, or ``tokens`` is below 1.
    """
    require_tokens(tokens)
    evaluation = read_prompt_file(config.evaluation_prompts, "encode_prompts.evaluation_prompts")
    captions = read_captions(config.captions)
    more = (
        [] if _is_empty(config.more_captions) else read_captions(config.more_captions, "encode_prompts.more_captions")
    )
    prompts = sorted({*captions, *more, *evaluation, config.negative_prompt})
    encoder_folder = config.init.locate("text_encoder")
    if encoder_folder is not None:
        tokenizer_folder = config.init.locate("tokenizer")
        assert tokenizer_folder is not None, (
            "locate returns a tokenizer or raises, because a folder with an encoder is not empty"
        )
        encoder, tokenizer = load_text_encoder(encoder_folder, tokenizer_folder, precision.dtype)
    else:
        tokenizer = build_tokenizer(prompts)
        encoder = build_text_encoder(text_encoder, len(tokenizer), seed)
    save_text_encoder(encoder, tokenizer, kept)
    encoder = encoder.to(devices.pick())
    embeddings: dict[str, torch.Tensor] = {}
    starts = range(0, len(prompts), BATCH)
    for start in progress(starts, total=len(starts), what="encode_prompts"):
        group: Sequence[str] = prompts[start : start + BATCH]
        embeddings.update(zip(group, (e.cpu() for e in embed(encoder, tokenizer, group, tokens)), strict=True))
    write_prompts(
        out, embeddings, captions=captions, evaluation=evaluation, negative=config.negative_prompt, tokens=tokens
    )
    return {"prompts": len(prompts), "evaluation_prompts": len(evaluation)}


def _is_empty(folder: Path) -> bool:
    """Return whether ``folder`` is a folder with nothing but hidden files and READMEs."""
    return folder.is_dir() and not contents(folder)
