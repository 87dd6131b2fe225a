"""Embed every prompt a run will need, once: no training step holds the text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causvid.data.manifest import read_manifest
from causvid.data.prompt_store import write_prompts
from causvid.models.pretrained import Init
from causvid.models.text_encoder import build_text_encoder, build_tokenizer, embed, load_text_encoder
from causvid.runtime import device as devices
from causvid.runtime.progress import progress

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Params section ``encode_prompts``. evaluation_prompts: a text file, one a line; negative_prompt may be ""."""

    init: Init
    evaluation_prompts: Path
    negative_prompt: str


def read_prompt_file(path: Path) -> list[str]:
    """The non-blank lines of ``path``. Raises ValueError when there are none."""
    if not path.is_file():
        raise ValueError(f"encode_prompts.evaluation_prompts is {path}, which does not exist")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"encode_prompts.evaluation_prompts is {path}, which holds no prompts")
    return prompts


def encode_prompts(
    clips: Path,
    config: PromptConfig,
    out: Path,
    *,
    text_encoder: Mapping[str, Any],
    tokens: int,
    precision: devices.Precision,
    seed: int,
) -> dict[str, float]:
    """Write data/prompts for the captions of ``clips``, the evaluation prompts and the negative prompt."""
    evaluation = read_prompt_file(config.evaluation_prompts)
    captions = [row["caption"] for row in read_manifest(clips)]
    prompts = sorted({*captions, *evaluation, config.negative_prompt})
    found = config.init.locate("text_encoder")
    if found is not None:
        tokenizer_folder = config.init.locate("tokenizer")
        assert tokenizer_folder is not None
        encoder, tokenizer = load_text_encoder(found, tokenizer_folder, precision.dtype)
    else:
        tokenizer = build_tokenizer(prompts)
        encoder = build_text_encoder(text_encoder, len(tokenizer), seed)
    encoder = encoder.to(devices.pick())
    embeddings: dict[str, torch.Tensor] = {}
    starts = range(0, len(prompts), BATCH)
    for start in progress(starts, total=len(starts), what="encode_prompts"):
        group: Sequence[str] = prompts[start : start + BATCH]
        embeddings.update(zip(group, (e.cpu() for e in embed(encoder, tokenizer, group, tokens)), strict=True))
    write_prompts(out, embeddings, evaluation=evaluation, negative=config.negative_prompt, tokens=tokens)
    return {"prompts": len(prompts), "evaluation_prompts": len(evaluation)}
