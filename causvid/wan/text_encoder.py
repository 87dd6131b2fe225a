"""Prompts to embeddings (transformers' UMT5): pretrained, or a small frozen random one over the words of the captions.

A frozen random encoder gives every word its own direction, which is enough to condition on; it needs no download.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from causvid.runtime.seeding import derive_seed
from causvid.runtime.text import prompt_list
from causvid.wan.weight_files import require_all_weights, transformers_files

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def clean(prompt: str) -> str:
    """Wan's prompt cleaning: mend broken Unicode, unescape HTML twice, collapse white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def build_tokenizer(prompts: str | Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the words of ``prompts``, in sorted order; ends a prompt with ``</s>`` as T5 does."""
    cleaned = [clean(prompt) for prompt in prompt_list(prompts)]
    words = sorted({word for prompt in cleaned for word, _ in Whitespace().pre_tokenize_str(prompt)})
    vocabulary = {word: index for index, word in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def build_text_encoder(config: Mapping[str, Any], vocabulary: int, seed: int) -> UMT5EncoderModel:
    """A frozen UMT5 encoder of ``config`` with random weights that depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "text_encoder"))
        encoder = UMT5EncoderModel(UMT5Config(**config, vocab_size=vocabulary, dropout_rate=0.0))
    return encoder.requires_grad_(False).eval()


def load_text_encoder(
    encoder: Path, tokenizer: Path, dtype: torch.dtype
) -> tuple[UMT5EncoderModel, PreTrainedTokenizerBase]:
    """Load a pretrained encoder and its tokenizer from their folders.

    Args:
        encoder: Folder of the encoder, as transformers saves it.
        tokenizer: Folder with its tokenizer.json.
        dtype: Data type of the encoder's weights.

    Returns:
        The encoder, frozen and in eval mode, and the tokenizer.

    Raises:
        ValueError: If a file is missing or damaged, if the weights are of several saves, or if some are missing.
    """
    for folder, name in ((encoder, "config.json"), (tokenizer, "tokenizer.json")):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}; expected a text encoder (config.json) and its tokenizer.json")
    transformers_files(encoder)
    try:
        model, found = UMT5EncoderModel.from_pretrained(encoder, dtype=dtype, output_loading_info=True)
    # A foreign loader with many ways to fail on files that are cut or do not belong together.
    except Exception as error:
        raise ValueError(f"{encoder} cannot be loaded as a text encoder: {_first_line(error)}") from error
    # The folder may hold a whole UMT5. The weights of its decoder are not needed.
    require_all_weights(encoder, missing=found["missing_keys"], unknown=())
    try:
        # As its tokenizer.json has it: AutoTokenizer would give unknown characters T5's number in place of UMT5's.
        words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    except Exception as error:
        raise ValueError(f"{tokenizer} cannot be loaded as a tokenizer: {_first_line(error)}") from error
    return model.requires_grad_(False).eval(), words


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_text_encoder(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write ``folder``/text_encoder and ``folder``/tokenizer, as in a diffusers pipeline's folder; no path in them."""
    encoder.config._name_or_path = ""
    tokenizer.name_or_path = ""
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


@torch.no_grad()
def embed(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str], tokens: int
) -> list[torch.Tensor]:
    """Embed ``prompts``, each by itself.

    Args:
        encoder: The text encoder.
        tokenizer: Its tokenizer.
        prompts: One prompt, or a sequence of at least one.
        tokens: Length at which a longer prompt is cut.

    Returns:
        One tensor [tokens of the prompt, D] per prompt, without padding, which is zero everywhere.

    Raises:
        ValueError: If ``prompts`` is empty or holds anything but strings.
    """
    listed = prompt_list(prompts)
    if not listed:
        raise ValueError("prompts is empty; give at least one")
    batch = tokenizer(
        [clean(prompt) for prompt in listed], padding="max_length", truncation=True, max_length=tokens,
        return_tensors="pt", return_attention_mask=True,
    )  # fmt: skip
    batch = {key: batch[key].to(encoder.device) for key in ("input_ids", "attention_mask")}
    states = encoder(**batch).last_hidden_state
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [state[:length].clone() for state, length in zip(states, lengths, strict=True)]
