"""Embeddings are read by prompt and then padded, and an error names a missing prompt."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causvid.data.stores.prompt_store import EMBEDDINGS, PromptStore, write_prompts


def embedding(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, 3, generator=torch.Generator().manual_seed(seed)) + 5


def write(folder: Path, prompts: dict[str, torch.Tensor]) -> PromptStore:
    write_prompts(folder, prompts, captions=["a"], evaluation=["b", "a", "b"], negative="", tokens=4)
    return PromptStore(folder)


@settings(max_examples=25)
@given(prompts=st.lists(st.text(max_size=30), min_size=1, max_size=5, unique=True))
def test_any_prompt_has_its_own_embedding(prompts: list[str]) -> None:
    with TemporaryDirectory() as temporary:
        store = write(Path(temporary) / "p", {p: embedding(1 + k % 4, k) for k, p in enumerate(prompts)})
        found = store(prompts)
        assert found.shape == (len(prompts), 4, 3)
        for k, row in enumerate(found):
            assert torch.equal(row[: 1 + k % 4], embedding(1 + k % 4, k))
            assert torch.count_nonzero(row[1 + k % 4 :]) == 0


def test_embeddings_follow_the_order_and_repetition_of_the_prompts(tmp_path: Path) -> None:
    store = write(tmp_path / "p", {"a": embedding(2, 1), "b": embedding(4, 2), "": embedding(1, 3)})
    assert torch.equal(store(["b", "a", "b"]), torch.stack([store(["b"])[0], store(["a"])[0], store(["b"])[0]]))
    assert store.evaluation == ["b", "a", "b"]
    assert store.negative == ""
    assert store([store.negative]).shape == (1, 4, 3)


def test_padding_is_not_stored(tmp_path: Path) -> None:
    short = {f"prompt {k}": embedding(1, k) for k in range(50)}
    write_prompts(tmp_path / "p", short, captions=[], evaluation=[], negative="prompt 0", tokens=10_000)
    assert (tmp_path / "p" / EMBEDDINGS).stat().st_size < 10_000


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    store = write(tmp_path / "p", {"a": embedding(2).bfloat16()})
    assert store(["a"]).dtype == torch.float32


def test_the_order_of_the_embeddings_does_not_change_the_bytes(tmp_path: Path) -> None:
    both = {"a": embedding(2, 1), "b": embedding(3, 2)}
    write(tmp_path / "p", both)
    write(tmp_path / "q", dict(reversed(both.items())))
    for path in (tmp_path / "p").iterdir():
        assert path.read_bytes() == (tmp_path / "q" / path.name).read_bytes()


def test_missing_prompts_and_files_are_named(tmp_path: Path) -> None:
    store = write(tmp_path / "p", {"a": embedding(2)})
    with pytest.raises(ValueError, match="has no embedding of 'a blue cube'; run encode_prompts"):
        store(["a", "a blue cube"])
    with pytest.raises(ValueError, match="holds no prompts.json; run encode_prompts"):
        PromptStore(tmp_path)
