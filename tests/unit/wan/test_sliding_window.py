"""A cache with a window generates an endless video with the memory of a few blocks.

A block has 2 latent frames of 4 x 4 latent pixels, which are 8 tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.kv_cache import KVCache, Slot, Window
from causvid.wan.transformer.wan import as_causal, build_transformer

BLOCK = 2
TEXT = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))


def student_of(config: dict[str, Any], **changes: Any) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer({**config, **changes}, 0), BLOCK).eval()


def video(frames: int) -> torch.Tensor:
    return torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(3))


def cache_of(student: CausalWanTransformer3DModel, frames: int, sink: int | None) -> KVCache:
    return student.make_kv_cache(batch_size=1, num_frames=frames, height=4, width=4, sink_frames=sink)


def step(
    student: CausalWanTransformer3DModel, cache: KVCache, start: int, x: torch.Tensor, time: float = 500.0
) -> torch.Tensor:
    """Call the student with noise and then with block ``x`` at latent frame ``start``, and return the output."""
    for content, at in ((x + 1, 900.0), (x, time)):
        out: torch.Tensor = student(
            content,
            timestep=torch.full((1, BLOCK), at),
            encoder_hidden_states=TEXT,
            return_dict=False,
            kv_cache=cache,
            start_frame=start,
        )[0]
    return out


def run(student: CausalWanTransformer3DModel, cache: KVCache, x: torch.Tensor) -> list[torch.Tensor]:
    return [step(student, cache, start, x[:, :, start : start + BLOCK]) for start in range(0, x.shape[2], BLOCK)]


@torch.no_grad()
@pytest.mark.parametrize(("window", "sink"), [(8, 0), (8, 2), (8, 6), (12, 4)])
def test_a_window_that_the_video_fits_changes_no_bit(
    transformer_config: dict[str, Any], window: int, sink: int
) -> None:
    student, x = student_of(transformer_config), video(8)
    plain = run(student, cache_of(student, 8, None), x)
    sliding = run(student, cache_of(student, window, sink), x)
    for ours, expected in zip(sliding, plain, strict=True):
        assert torch.equal(ours, expected)


@torch.no_grad()
@pytest.mark.parametrize(("window", "sink"), [(6, 0), (6, 2), (6, 4), (8, 2), (2, 0)])
def test_a_window_equals_a_video_of_the_sink_and_the_latest_blocks(
    transformer_config: dict[str, Any], window: int, sink: int
) -> None:
    """In one layer, keys and values of a block depend on that block only.

    The expected cache can therefore be built from the sink and the latest blocks.
    """
    student, x = student_of(transformer_config, num_layers=1), video(18)
    sliding = run(student, cache_of(student, window, sink), x)
    for start in range(window, 18, BLOCK):
        ring = window - sink
        kept = torch.cat([x[:, :, :sink], x[:, :, start + BLOCK - ring : start + BLOCK]], dim=2)
        expected = run(student, cache_of(student, window, None), kept)[-1]
        torch.testing.assert_close(sliding[start // BLOCK], expected, rtol=0, atol=2e-6)
        if start > window:  # a window that is one block longer gives another result
            other = torch.cat([x[:, :, :sink], x[:, :, start - ring : start], x[:, :, start : start + BLOCK]], dim=2)
            longer = run(student, cache_of(student, window + BLOCK, None), other)[-1]
            assert not torch.allclose(sliding[start // BLOCK], longer, atol=1e-5)


@torch.no_grad()
def test_a_long_video_needs_neither_a_longer_rotary_table_nor_more_memory(
    transformer_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, x = student_of(transformer_config, rope_max_seq_len=8), video(40)
    cache = cache_of(student, 8, 2)
    monkeypatch.setattr(KVCache, "allocate", None)  # another allocation would raise an error
    memory = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    shapes = [layer.keys.shape for layer in cache.layers]
    outs = run(student, cache, x)
    assert all(out.isfinite().all() for out in outs)
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers] == memory
    assert [layer.keys.shape for layer in cache.layers] == shapes


@torch.no_grad()
def test_only_the_oldest_block_of_the_ring_is_overwritten(transformer_config: dict[str, Any]) -> None:
    student, x = student_of(transformer_config), video(16)
    cache = cache_of(student, 8, 2)
    run(student, cache, x[:, :, :8])
    written = []
    for start in range(8, 16, BLOCK):
        before = cache.layers[1].keys.clone()
        step(student, cache, start, x[:, :, start : start + BLOCK])
        changed = (cache.layers[1].keys != before).flatten(2).any(dim=2)[0].unflatten(0, (4, 8))
        assert torch.equal(changed.all(dim=1), changed.any(dim=1))
        written.append(changed.all(dim=1).nonzero().flatten().tolist())
    assert written == [[1], [2], [3], [1]]  # indices of blocks in the cache; block 0 is the sink


@pytest.mark.parametrize("sink", [0, 3, 6])
@pytest.mark.parametrize("window", [9, 12])
def test_a_slot_depends_on_the_start_frame_only(window: int, sink: int) -> None:
    """Compare the slots with a simulation that lists the frames in the cache."""
    layout = Window(frames=window, sink=sink, block=3)
    memory: list[int] = []  # index of the video frame in each frame of the cache
    for start in range(0, 60, 3):
        slot = layout.slot(start, 3, frame_tokens=5)
        assert slot == layout.slot(start, 3, frame_tokens=5)
        at, new = slot.start // 5, range(start, start + 3)
        memory[at : at + 3] = new
        assert slot.seen == 5 * len(memory) <= 5 * window
        assert slot.key_frames is not None
        positions = [position for frames in slot.key_frames for position in frames]
        in_time = [frame for _, frame in sorted(zip(positions, memory, strict=True))]
        assert sorted(positions) == list(range(len(memory)))  # positions are 0, 1, 2, …, and stay below the window size
        assert in_time == sorted(memory)
        assert in_time[:sink] == list(range(min(sink, start + 3)))
        assert in_time[-3:] == list(new)
        assert positions[at : at + 3] == list(range(slot.frame, slot.frame + 3))


def test_a_cache_without_a_window_holds_rotated_keys(transformer_config: dict[str, Any]) -> None:
    cache = cache_of(student_of(transformer_config), 6, None)
    assert cache.slot(2, BLOCK) == Slot(start=8, seen=16, frame=2, key_frames=None)


@torch.no_grad()
def test_wrong_windows_and_blocks_are_named(transformer_config: dict[str, Any]) -> None:
    student, x = student_of(transformer_config), video(6)
    with pytest.raises(ValueError, match=r"tokens 24…32 .* do not fit a KV cache of 24 tokens .*sink_frames"):
        step(student, cache_of(student, 6, None), 6, x[:, :, :2])
    for sink in (1, -2):
        with pytest.raises(ValueError, match=f"sink_frames is {sink}; it must be whole blocks of 2 latent frames"):
            cache_of(student, 6, sink)
    for frames, sink, least in ((5, 0, 2), (4, 4, 6), (0, 0, 2)):
        with pytest.raises(ValueError, match=f"num_frames is {frames}; .* at least one besides its sink: {least}"):
            cache_of(student, frames, sink)
    cache = cache_of(student, 6, 0)
    with pytest.raises(ValueError, match=r"a call of 2 latent frames starts at start_frame 3; .* block of 2"):
        step(student, cache, 3, x[:, :, :2])
    with pytest.raises(ValueError, match=r"a call of 4 latent frames starts at start_frame 0"):
        student(x[:, :, :4], timestep=torch.zeros(1, 4), encoder_hidden_states=TEXT, kv_cache=cache)
    short = student_of(transformer_config, rope_max_seq_len=4)
    with pytest.raises(ValueError, match=r"frame 6 is beyond the rotary table of 4 latent frames; .*sink_frames"):
        run(short, cache_of(short, 6, 0), x)
