"""An embedding depends on its prompt only, has no padding, and needs no global random state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from causvid.wan.text_encoder import (
    UNKNOWN,
    build_text_encoder,
    build_tokenizer,
    clean,
    embed,
    load_text_encoder,
    unknown_words,
)

CONFIG = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
PROMPTS = ["a red ball moves left", "a blue cube", ""]


def embed_with(prompts: list[str], tokens: int = 8, seed: int = 0) -> list[torch.Tensor]:
    tokenizer = build_tokenizer(PROMPTS)
    return embed(build_text_encoder(CONFIG, len(tokenizer), seed), tokenizer, prompts, tokens)


def test_padding_is_not_stored() -> None:
    # each token is a word or the end token </s>
    assert [e.shape for e in embed_with(PROMPTS)] == [(6, 8), (4, 8), (1, 8)]


def test_an_embedding_does_not_depend_on_the_batch_or_the_padding() -> None:
    together = embed_with(PROMPTS)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(embed_with([prompt])[0], expected)
        torch.testing.assert_close(embed_with([prompt], tokens=30)[0], expected)


def test_the_empty_prompt_is_one_end_token() -> None:
    tokenizer = build_tokenizer(PROMPTS)
    assert tokenizer("")["input_ids"] == [tokenizer.eos_token_id]
    assert embed_with([""])[0].abs().sum() > 0
    torch.testing.assert_close(embed_with(["   "])[0], embed_with([""])[0])


def test_unknown_words_are_named_once_and_without_punctuation() -> None:
    tokenizer = build_tokenizer(["a red ball moves", "Wan &amp; co"])
    assert unknown_words(tokenizer, ["a  red ball, a blue ball.", "A blue... 42 balls &amp; co", "赤い"]) == [
        "blue", "A", "42", "balls", "赤い",
    ]  # fmt: skip
    assert unknown_words(tokenizer, ["a red ball moves."]) == []
    assert unknown_words(tokenizer, []) == []


def test_a_tokenizer_that_divides_words_into_parts_has_no_unknown_words() -> None:
    parts = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)], 0)))
    assert unknown_words(parts, ["purple"]) == []


def test_only_unknown_words_share_a_token() -> None:
    tokenizer = build_tokenizer(PROMPTS)
    ids = tokenizer("a green ball")["input_ids"]
    assert ids[1] == tokenizer.convert_tokens_to_ids(UNKNOWN)
    known = tokenizer("a red ball moves left blue cube")["input_ids"][:-1]
    assert len(set(known)) == 7
    assert len(tokenizer) == 10  # the vocabulary has seven words and three special tokens
    torch.testing.assert_close(*embed_with(["a green ball", "a lilac ball"]))
    red, blue = embed_with(["a red ball", "a blue ball"])
    assert (red - blue).abs().max() > 0.01


def test_truncated_prompts_end_with_the_end_token() -> None:
    tokenizer = build_tokenizer(PROMPTS)
    cut = tokenizer(PROMPTS[0], truncation=True, max_length=3)["input_ids"]
    assert len(cut) == 3
    assert cut[-1] == tokenizer.eos_token_id
    assert embed_with(PROMPTS, tokens=3)[0].shape == (3, 8)


def test_the_vocabulary_does_not_depend_on_the_order_of_prompts() -> None:
    assert build_tokenizer(PROMPTS).get_vocab() == build_tokenizer(PROMPTS[::-1]).get_vocab()


def test_weights_depend_on_the_seed_only() -> None:
    first = embed_with(PROMPTS)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, embed_with(PROMPTS), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], embed_with(PROMPTS, seed=1)[0])
    encoder = build_text_encoder(CONFIG, 10, 0)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a\n\tb  ", "a b"),
        ("a &amp;amp; b", "a & b"),
        ("caf\u00c3\u00a9", "café"),
        ("", ""),
        ("色调艳丽，过曝", "色调艳丽,过曝"),
    ],
)
def test_cleaning(prompt: str, cleaned: str) -> None:
    assert clean(prompt) == cleaned


def test_a_saved_encoder_gives_the_same_embeddings(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(PROMPTS)
    encoder = build_text_encoder(CONFIG, len(tokenizer), 0)
    encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = load_text_encoder(tmp_path / "text_encoder", tmp_path / "tokenizer", torch.float32)
    for ours, theirs in zip(embed(*loaded, PROMPTS, 8), embed(encoder, tokenizer, PROMPTS, 8), strict=True):
        assert torch.equal(ours, theirs)
