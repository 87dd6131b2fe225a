"""Embed every prompt a run will need, once: no training step holds the text encoder, which is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causvid.compute import device as devices
from causvid.data.captions import read_captions
from causvid.data.stores.prompt_store import read_prompt_file, require_tokens, write_prompts
from causvid.harness.progress import progress
from causvid.training.pretrained import Init, contents
from causvid.wan.text_encoder import (
    build_text_encoder,
    build_tokenizer,
    embed,
    load_text_encoder,
    save_text_encoder,
)

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Params section ``encode_prompts``. evaluation_prompts: a text file, one a line; negative_prompt may be "".

    captions: the prompts to train with: a folder of clips, an LMDB of ours or a released one, or such a text file;
    more_captions: another such place, or a folder without either for none.
    """

    init: Init
    captions: Path
    more_captions: Path
    evaluation_prompts: Path
    negative_prompt: str


def encode_prompts(
    config: PromptConfig,
    out: Path,
    kept: Path,
    *,
    text_encoder: Mapping[str, Any],
    tokens: int,
    precision: devices.Precision,
    seed: int,
) -> dict[str, float]:
    """Write ``out`` for the captions, the evaluation prompts and the negative prompt, and the encoder to ``kept``.

    Raises ValueError for prompts or weights that cannot be read, and for ``tokens`` below 1.
    """
    require_tokens(tokens)
    evaluation = read_prompt_file(config.evaluation_prompts, "encode_prompts.evaluation_prompts")
    captions = read_captions(config.captions)
    more = (
        [] if _is_empty(config.more_captions) else read_captions(config.more_captions, "encode_prompts.more_captions")
    )
    prompts = sorted({*captions, *more, *evaluation, config.negative_prompt})
    found = config.init.locate("text_encoder")
    if found is not None:
        tokenizer_folder = config.init.locate("tokenizer")
        assert tokenizer_folder is not None, "a folder with an encoder is not empty: locate finds a tokenizer or raises"
        encoder, tokenizer = load_text_encoder(found, tokenizer_folder, precision.dtype)
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
    """Whether it is a placeholder: a folder with nothing but hidden files and a README."""
    return folder.is_dir() and not contents(folder)
