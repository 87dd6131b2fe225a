"""A history keeps the graph of every block, and a later call with the same block replaces its keys and values."""

from __future__ import annotations

import torch

from causvid.wan.transformer.kv_cache import Slot
from causvid.wan.transformer.kv_history import LayerHistory


def slot(start: int, tokens: int = 2) -> Slot:
    return Slot(start=start, seen=start + tokens, frame=start, key_frames=None)


def block(value: float) -> tuple[torch.Tensor, torch.Tensor]:
    keys = torch.full((1, 2, 1, 3), float(value), requires_grad=True)
    return keys, torch.full((1, 2, 1, 3), -float(value), requires_grad=True)


def test_a_block_attends_to_the_earlier_blocks_and_to_itself() -> None:
    layer = LayerHistory()
    for start in (0, 2, 4):
        keys, values = layer.write(slot(start), *block(start + 1))
        assert keys[0, ::2, 0, 0].tolist() == [float(it + 1) for it in range(0, start + 1, 2)]
        assert torch.equal(values, -keys)
    keys, _ = layer.write(slot(2), *block(7))  # as in a backward pass that computes the block again
    assert keys[0, ::2, 0, 0].tolist() == [1.0, 7.0]


def test_a_replaced_block_keeps_its_gradient_in_earlier_graphs() -> None:
    layer, first, second = LayerHistory(), block(1), block(2)
    layer.write(slot(0), *first)
    before, _ = layer.write(slot(2), *block(5))
    layer.write(slot(0), *second)
    after, _ = layer.write(slot(2), *block(5))
    before.sum().backward()
    assert first[0].grad is not None
    assert second[0].grad is None
    after.sum().backward()
    assert second[0].grad is not None


def test_without_gradients_the_stored_graphs_remain() -> None:
    """The denoising passes before the exit step have no gradient, but read blocks that have one."""
    layer, first = LayerHistory(), block(1)
    layer.write(slot(0), *first)
    with torch.no_grad():
        keys, _ = layer.write(slot(2), *block(3))
    assert not keys.requires_grad
    keys, _ = layer.write(slot(2), *block(3))
    keys.sum().backward()
    assert first[0].grad is not None
