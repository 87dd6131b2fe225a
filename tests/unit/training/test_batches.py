"""Test how ranks share a batch, and that the noise of a sample does not depend on its place in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from causvid.data.stores.latent_store import LatentStore
from causvid.data.stores.prompt_store import PromptStore
from causvid.methods.shared.batches import Texts, read_batch
from causvid.training import distributed

CPU = torch.device("cpu")


def test_two_ranks_read_the_two_halves_of_a_batch(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LatentStore(world / "lmdb" / "latents")
    whole = read_batch(store, seed=0, step=3, size=6, device=CPU)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(read_batch(store, seed=0, step=3, size=6, device=CPU))
    assert whole.numbers == halves[0].numbers + halves[1].numbers == list(range(18, 24))
    assert whole.prompts == halves[0].prompts + halves[1].prompts
    assert torch.equal(whole.latents, torch.cat([half.latents for half in halves]))
    assert torch.equal(whole.noise(0, "x"), torch.cat([half.noise(0, "x") for half in halves]))
    with pytest.raises(
        ValueError, match="the batch of 5 does not divide over 2 workers; change batch_size or compute.workers"
    ):
        read_batch(store, seed=0, step=0, size=5, device=CPU)


def test_an_epoch_of_batches_contains_every_clip_once(world: Path) -> None:
    store = LatentStore(world / "lmdb" / "latents")
    prompts = [p for step in range(4) for p in read_batch(store, seed=0, step=step, size=2, device=CPU).prompts]
    assert sorted(prompts) == sorted(store[k].prompt for k in range(len(store)))


def test_noise_differs_by_sample_purpose_and_seed(world: Path) -> None:
    batch = read_batch(LatentStore(world / "lmdb" / "latents"), seed=0, step=0, size=2, device=CPU)
    noise = batch.noise(0, "teacher")
    assert noise.shape == batch.latents.shape
    assert torch.equal(noise, batch.noise(0, "teacher"))
    others = [batch.noise(0, "critic"), batch.noise(1, "teacher"), noise.flip(0)]
    assert not any(torch.equal(noise, other) for other in others)
    assert batch.noise(0, "teacher", (5,)).shape == (2, 5)


def test_texts_equal_those_of_the_store(world: Path) -> None:
    store = PromptStore(world / "prompts")
    texts = Texts(store, CPU, None)
    a, b = store.evaluation[:2]
    assert torch.equal(texts([a, b, a]), store([a, b, a]))
    assert torch.equal(texts.negative(), store([""]))
