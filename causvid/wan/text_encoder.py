"""Encode prompts with UMT5 of transformers: a pretrained encoder, or a small encoder with random weights.

The random encoder needs no download and is never trained. Each word has a different random embedding, and this is
sufficient to condition a small model. The vocabulary consists of the words of all prompts that are encoded.
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
from causvid.wan.formats.weight_files import require_all_weights, transformers_files

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

TextEncoder = UMT5EncoderModel  # name of the class for code in other folders


def clean(prompt: str) -> str:
    """Clean a prompt as Wan does: repair broken Unicode, unescape HTML twice, and collapse white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def build_tokenizer(prompts: str | Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with the sorted words of ``prompts`` as vocabulary. Like T5, the tokenizer appends ``</s>``."""
    cleaned = [clean(prompt) for prompt in prompt_list(prompts)]
    words = sorted({word for prompt in cleaned for word, _ in Whitespace().pre_tokenize_str(prompt)})
    vocabulary = {word: index for index, word in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def build_text_encoder(config: Mapping[str, Any], vocabulary: int, seed: int) -> UMT5EncoderModel:
    """Build a frozen UMT5 encoder with random weights.

    Args:
        config: Arguments of ``UMT5Config``.
        vocabulary: Number of tokens in the vocabulary.
        seed: Seed of the weights, which depend on no other random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "text_encoder"))
        encoder = UMT5EncoderModel(UMT5Config(**config, vocab_size=vocabulary, dropout_rate=0.0))
    return encoder.requires_grad_(False).eval()


def load_text_encoder(
    encoder: Path, tokenizer: Path, dtype: torch.dtype
) -> tuple[UMT5EncoderModel, PreTrainedTokenizerBase]:
    """Load a pretrained text encoder and its tokenizer from two folders.

    Args:
        encoder: Folder of the encoder in the format of transformers.
        tokenizer: Folder of the tokenizer, with a tokenizer.json.
        dtype: Data type of the weights.

    Returns:
        The encoder, frozen and in eval mode, and the tokenizer.

    Raises:
        ValueError: If a file is missing or damaged, if weights are missing, or if the weight files are from different
            saves.
    """
    for folder, name in ((encoder, "config.json"), (tokenizer, "tokenizer.json")):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}; expected a text encoder (config.json) and its tokenizer.json")
    transformers_files(encoder)
    try:
        model, report = UMT5EncoderModel.from_pretrained(encoder, dtype=dtype, output_loading_info=True)
    # from_pretrained raises many kinds of errors for truncated files and for files of different models.
    except Exception as error:
        raise ValueError(f"{encoder} cannot be loaded as a text encoder: {_first_line(error)}") from error
    # The folder may also contain the decoder of UMT5. The weights of the decoder are not needed.
    require_all_weights(encoder, missing=report["missing_keys"], unknown=())
    try:
        # AutoTokenizer is not used, because it would replace unknown characters by the token of T5, not of UMT5.
        words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    except Exception as error:
        raise ValueError(f"{tokenizer} cannot be loaded as a tokenizer: {_first_line(error)}") from error
    return model.requires_grad_(False).eval(), words


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_text_encoder(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write ``folder``/text_encoder and ``folder``/tokenizer, as in a diffusers pipeline. The files name no path."""
    encoder.config._name_or_path = ""
    tokenizer.name_or_path = ""
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


def unknown_words(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return the words of ``prompts`` that are not in the vocabulary of ``build_tokenizer``, without duplicates.

    The encoder gives all these words the same embedding. Other tokenizers divide every word into known parts. Upper and
    lower case are different words.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, WordLevel):
        return []
    vocabulary = backend.get_vocab(with_added_tokens=False)
    words = (word for prompt in prompts for word, _ in Whitespace().pre_tokenize_str(clean(prompt)))
    return [word for word in dict.fromkeys(words) if word not in vocabulary and any(map(str.isalnum, word))]


@torch.no_grad()
def embed(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str], tokens: int
) -> list[torch.Tensor]:
    """Compute the embeddings of ``prompts``.

    Args:
        encoder: The text encoder.
        tokenizer: The tokenizer of this encoder.
        prompts: One prompt, or a sequence of at least one prompt.
        tokens: Maximum number of tokens; longer prompts are truncated.

    Returns:
        A tensor [tokens of the prompt, D] for each prompt, without padding. Other code pads embeddings with zeros.

    Raises:
        ValueError: If ``prompts`` is empty or contains an element that is not a string.
    """
    listed = prompt_list(prompts)
    if not listed:
        raise ValueError("prompts is empty; give at least one prompt")
    batch = tokenizer(
        [clean(prompt) for prompt in listed], padding="max_length", truncation=True, max_length=tokens,
        return_tensors="pt", return_attention_mask=True,
    )  # fmt: skip
    batch = {key: batch[key].to(encoder.device) for key in ("input_ids", "attention_mask")}
    states = encoder(**batch).last_hidden_state
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [state[:length].clone() for state, length in zip(states, lengths, strict=True)]
