"""A history keeps the graph of every block, and a later call with the same block replaces its keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causvid.compute.parallel import Checkpointing
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.kv_cache import KVCache
from causvid.wan.transformer.wan import as_causal, build_transformer, for_training

TEXT = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def student(transformer_config: dict[str, Any]) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer(transformer_config, 0), 2).train()


def call(student: CausalWanTransformer3DModel, history: KVCache, start: int, seed: int) -> torch.Tensor:
    """Return the velocity of a block of two latent frames, which are 8 tokens."""
    x = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    times = {"timestep": torch.full((1, 2), 500.0), "encoder_hidden_states": TEXT}
    out: torch.Tensor = student(x, **times, return_dict=False, kv_cache=history, start_frame=start)[0]
    return out


def test_a_later_call_with_a_block_replaces_it(student: CausalWanTransformer3DModel) -> None:
    history, other = (student.make_kv_history(height=4, width=4) for _ in range(2))
    for seed in (1, 2):
        call(student, history, 0, seed)
    call(student, other, 0, 2)
    assert torch.equal(call(student, history, 2, 3), call(student, other, 2, 3))
    assert [sorted(layer.blocks) for layer in history.layers] == [[0, 8], [0, 8]]


def test_the_gradient_of_a_block_reaches_the_keys_of_earlier_blocks_also_after_their_replacement(
    student: CausalWanTransformer3DModel,
) -> None:
    history = student.make_kv_history(height=4, width=4)
    call(student, history, 0, 1)
    first = [layer.blocks[0] for layer in history.layers]
    out = call(student, history, 2, 3)
    call(student, history, 0, 2)
    gradients = torch.autograd.grad(out.sum(), [tensor for block in first for tensor in block])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_without_gradients_the_stored_graphs_remain(student: CausalWanTransformer3DModel) -> None:
    """The denoising passes before the exit step have no gradient, but read blocks that have one."""
    history = student.make_kv_history(height=4, width=4)
    call(student, history, 0, 1)
    with torch.no_grad():
        assert not call(student, history, 2, 3).requires_grad
    gradients = torch.autograd.grad(call(student, history, 2, 3).sum(), list(history.layers[1].blocks[0]))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_a_backward_pass_that_computes_layers_again_does_not_change_the_history(
    student: CausalWanTransformer3DModel, kind: Checkpointing
) -> None:
    for_training(student, kind)
    history = student.make_kv_history(height=4, width=4)
    call(student, history, 0, 1)
    out = call(student, history, 2, 3)
    before = [id(block) for layer in history.layers for block in layer.blocks.values()]
    out.sum().backward()
    assert [id(block) for layer in history.layers for block in layer.blocks.values()] == before


def test_a_missing_block_is_named(student: CausalWanTransformer3DModel) -> None:
    history = student.make_kv_history(height=4, width=4)
    call(student, history, 0, 1)
    with pytest.raises(ValueError, match="starts at token 16, and the history has 8 earlier tokens; call the model"):
        call(student, history, 4, 1)
