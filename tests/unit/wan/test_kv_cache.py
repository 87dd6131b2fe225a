"""The KV cache is allocated once and written in place, also stores the prompt, and never stores a gradient."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.kv_cache import KVCache
from causvid.wan.transformer.wan import as_causal, build_transformer


@pytest.fixture
def student(transformer_config: dict[str, Any]) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer(transformer_config, 0), 2).eval()


def step(student: CausalWanTransformer3DModel, cache: KVCache, start: int, text: torch.Tensor) -> torch.Tensor:
    x = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(start))
    out: torch.Tensor = student(
        x,
        timestep=torch.full((1, 2), 500.0),
        encoder_hidden_states=text,
        return_dict=False,
        kv_cache=cache,
        start_frame=start,
    )[0]
    return out


def test_a_cache_has_the_size_of_its_video(student: CausalWanTransformer3DModel) -> None:
    cache = student.make_kv_cache(batch_size=3, num_frames=6, height=4, width=8)
    assert len(cache.layers) == 2
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (3, 6 * 2 * 4, 2, 16)
        assert layer.keys.dtype == torch.float32
        assert layer.text is None


@torch.no_grad()
def test_a_call_writes_only_the_tokens_of_its_block_in_place(student: CausalWanTransformer3DModel) -> None:
    cache, text = student.make_kv_cache(batch_size=1, num_frames=6, height=4, width=4), torch.randn(1, 3, 8)
    memory = [layer.keys.data_ptr() for layer in cache.layers]
    step(student, cache, 0, text)
    first = cache.layers[1].keys.clone()
    assert first[:, :8].abs().min() > 0
    assert torch.count_nonzero(first[:, 8:]) == 0
    step(student, cache, 2, text)
    assert torch.equal(cache.layers[1].keys[:, :8], first[:, :8])
    assert cache.layers[1].keys[:, 8:16].abs().min() > 0
    again = step(student, cache, 2, text)
    assert torch.equal(step(student, cache, 2, text), again)  # a second call at the same start frame replaces the block
    assert [layer.keys.data_ptr() for layer in cache.layers] == memory


@torch.no_grad()
def test_a_prompt_is_projected_once_for_each_cache(student: CausalWanTransformer3DModel) -> None:
    projected: list[int] = []
    for block in student.blocks:
        for name in ("to_k", "to_v"):
            getattr(block.attn2, name).register_forward_hook(lambda *_: projected.append(1))
    cache = student.make_kv_cache(batch_size=1, num_frames=6, height=4, width=4)
    text, other = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    outs = [step(student, cache, start, text) for start in (0, 2, 4, 4)]
    assert len(projected) == 2 * 2  # two layers project keys and values of the prompt once
    assert torch.equal(outs[2], outs[3])
    fresh = student.make_kv_cache(batch_size=1, num_frames=6, height=4, width=4)
    assert not torch.allclose(step(student, fresh, 0, other), outs[0], atol=1e-4)
    assert len(projected) == 4 * 2


@pytest.mark.parametrize("sink", [None, 0])
def test_a_forward_pass_with_gradients_is_refused(student: CausalWanTransformer3DModel, sink: int | None) -> None:
    """A backward pass after another write would need overwritten values."""
    cache = student.make_kv_cache(batch_size=1, num_frames=6, height=4, width=4, sink_frames=sink)
    with pytest.raises(ValueError, match=re.escape("require gradients; call the model under torch.no_grad()")):
        step(student, cache, 0, torch.randn(1, 3, 8))
    student.requires_grad_(False)
    student.blocks[-1].attn2.to_k.requires_grad_(True)  # only the keys of the prompt have a gradient
    with pytest.raises(ValueError, match="require gradients"):
        step(student, cache, 0, torch.randn(1, 3, 8))
    student.requires_grad_(False)
    assert not step(student, cache, 0, torch.randn(1, 3, 8)).requires_grad


def test_without_a_cache_no_prompt_is_cached(student: CausalWanTransformer3DModel) -> None:
    text = torch.randn(1, 3, 8)
    for scale in (1, -1):  # a prompt in a cache would change the second result
        x = torch.ones(1, 4, 2, 4, 4)
        out = student(x, timestep=torch.full((1, 2), 500.0), encoder_hidden_states=scale * text, return_dict=False)[0]
        if scale == 1:
            first = out
    assert not torch.allclose(first, out, atol=1e-5)
