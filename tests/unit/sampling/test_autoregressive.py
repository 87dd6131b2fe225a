"""Blockwise generation calls the model, fills the cache, draws noise and uses memory as expected."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causvid.diffusion.schedule import ScheduleConfig
from causvid.sampling.autoregressive import generate_blocks
from causvid.sampling.few_step import few_step
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.kv_cache import KVCache
from causvid.wan.transformer.wan import as_causal, build_transformer

Call = tuple[int, list[float], torch.Tensor]


@pytest.fixture
def student(transformer_config: dict[str, Any]) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer(transformer_config, 0), 2).eval()


def calls_of(student: CausalWanTransformer3DModel) -> list[Call]:
    """Record the start frame, the timesteps of the frames, and the input of every later call."""
    seen: list[Call] = []
    student.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["start_frame"], kwargs["timestep"][0].tolist(), args[0].clone())),
        with_kwargs=True,
    )
    return seen


def draw_from(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda frames: torch.randn(1, 4, frames, 4, 4, generator=generator)


NOISE = torch.randn(1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_each_block_is_denoised_and_then_written_to_the_cache(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    """As in CausVid algorithm 2, each block is written except the last block, to which no block attends."""
    seen = calls_of(student)
    blocks = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3)))
    steps = [1000.0, 750.0, 500.0]
    expected = [(start, time) for start in (0, 2, 4) for time in [*steps, 0.0]][:-1]
    assert [(start, times[0]) for start, times, _ in seen] == expected
    assert all(times[0] == times[1] for _, times, _ in seen)
    assert torch.equal(seen[0][2], NOISE[:, :, :2])
    assert torch.equal(seen[4][2], NOISE[:, :, 2:4])
    for k, clean in ((0, seen[3][2]), (1, seen[7][2])):
        assert torch.equal(clean, blocks[k])


@torch.no_grad()
def test_the_cache_is_allocated_once_and_the_prompt_is_projected_once(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated = []
    allocate = KVCache.allocate.__func__  # type: ignore[attr-defined]

    def counting(cls: type[KVCache], **sizes: Any) -> KVCache:
        allocated.append(sizes["frames"] * sizes["frame_tokens"])
        made: KVCache = allocate(cls, **sizes)
        return made

    monkeypatch.setattr(KVCache, "allocate", classmethod(counting))
    projected: list[int] = []
    for block in student.blocks:
        block.attn2.to_k.register_forward_hook(lambda *_: projected.append(1))
    list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3)))
    assert allocated == [6 * 2 * 2]
    assert len(projected) == len(student.blocks)


@torch.no_grad()
def test_a_block_attends_to_clean_earlier_blocks(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    """Compare with a computation without a cache over the last block and the clean earlier blocks at timestep 0."""
    *past, last = generate_blocks(student, TEXT, NOISE, schedule, draw_from(3))
    fresh = draw_from(3)
    for _ in range(2 * 2):  # skip the noise of the two earlier blocks, with two draws per block
        fresh(2)

    def uncached(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        times = torch.cat([torch.zeros(1, 4), timestep], dim=1)
        whole = torch.cat([*past, x_t], dim=2)
        out: torch.Tensor = student(whole, timestep=times, encoder_hidden_states=TEXT, return_dict=False)[0][:, :, 4:]
        return out

    expected = few_step(uncached, NOISE[:, :, 4:], schedule.denoising_timesteps, lambda: fresh(2))
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_known_blocks_are_yielded_unchanged_and_written_to_the_cache(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    context = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(4))
    seen = calls_of(student)
    blocks = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3), context))
    assert torch.equal(blocks[0], context)
    assert [(start, times[0]) for start, times, _ in seen[:2]] == [(0, 0.0), (2, 1000.0)]
    assert len(seen) == 1 + 4 + 3
    without = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3)))
    assert not torch.allclose(blocks[1], without[1], atol=1e-3)


@torch.no_grad()
def test_a_known_start_is_continued_like_a_generated_start(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    first, *rest = generate_blocks(student, TEXT, NOISE, schedule, draw_from(3))
    fresh = draw_from(3)
    fresh(2), fresh(2)
    again = list(generate_blocks(student, TEXT, NOISE, schedule, fresh, first))
    assert torch.equal(again[0], first)
    for ours, expected in zip(again[1:], rest, strict=True):
        assert torch.equal(ours, expected)


@torch.no_grad()
def test_the_context_timestep_is_that_of_the_schedule(student: CausalWanTransformer3DModel) -> None:
    noisy = ScheduleConfig(shift=3.0, solver_steps=4, denoising_timesteps=(1000,), context_timestep=20.0)
    seen = calls_of(student)
    list(generate_blocks(student, TEXT, NOISE, noisy, draw_from(3)))
    assert [times[0] for _, times, _ in seen] == [1000.0, 20.0, 1000.0, 20.0, 1000.0]


@torch.no_grad()
def test_frames_that_do_not_divide_into_blocks_are_rejected(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    with pytest.raises(ValueError, match="5 latent frames divide into blocks of 1, 5 frames"):
        next(generate_blocks(student, TEXT, NOISE[:, :, :5], schedule, draw_from(0)))
    with pytest.raises(ValueError, match="frames_per_block is 2; 3 latent frames"):
        next(generate_blocks(student, TEXT, NOISE, schedule, draw_from(0), NOISE[:, :, :3]))


def endless(seed: int) -> Iterator[torch.Tensor]:
    draw = draw_from(seed)
    while True:
        yield draw(2)


@torch.no_grad()
def test_noise_in_single_blocks_gives_the_same_video(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    whole = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3)))
    parts = generate_blocks(student, TEXT, iter(NOISE.split(2, dim=2)), schedule, draw_from(3), window=6)
    for ours, expected in zip(parts, whole, strict=True):
        assert torch.equal(ours, expected)


@torch.no_grad()
@pytest.mark.parametrize(("window", "sink"), [(6, 0), (6, 2), (8, 4)])
def test_a_window_as_long_as_the_video_changes_nothing(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig, window: int, sink: int
) -> None:
    whole = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3)))
    windowed = generate_blocks(student, TEXT, NOISE, schedule, draw_from(3), window=window, sink=sink)
    for ours, expected in zip(windowed, whole, strict=True):
        assert torch.equal(ours, expected)


@torch.no_grad()
def test_a_full_window_changes_only_later_blocks(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    whole = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3), NOISE[:, :, :2]))
    windowed = list(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3), NOISE[:, :, :2], window=4, sink=0))
    assert torch.equal(windowed[0], NOISE[:, :, :2])
    assert torch.equal(windowed[1], whole[1])
    assert not torch.allclose(windowed[2], whole[2], atol=1e-4)  # the window no longer contains the first block


class _Sizes(TorchDispatchMode):
    """Record the sizes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes += [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        return out


@torch.no_grad()
def test_an_endless_video_has_constant_memory_and_cost(
    transformer_config: dict[str, Any], schedule: ScheduleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video has 40 latent frames, and the rotary table has 8.

    All blocks have the same cost once the window is full.
    """
    student = as_causal(build_transformer({**transformer_config, "rope_max_seq_len": 8}, 0), 2).eval()
    caches = []
    make = student.make_kv_cache
    monkeypatch.setattr(student, "make_kv_cache", lambda **sizes: caches.append(make(**sizes)) or caches[-1])
    stream = generate_blocks(student, TEXT, endless(1), schedule, draw_from(3), window=8, sink=2)
    seen, pointers, blocks = [], set(), []
    for _ in range(20):
        with _Sizes() as spy:
            blocks.append(next(stream))
        seen.append((len(spy.sizes), max(spy.sizes), sum(spy.sizes)))
        pointers.add(tuple(layer.keys.data_ptr() for layer in caches[0].layers))
    assert len(caches) == len(pointers) == 1
    assert caches[0].layers[0].keys.shape[1] == 8 * 4
    assert seen[0] != seen[5]
    assert set(seen[5:]) == {seen[5]}
    assert all(block.shape == (1, 4, 2, 4, 4) and block.isfinite().all() for block in blocks)
    assert not any(torch.equal(*pair) for pair in pairwise(blocks))


@torch.no_grad()
def test_a_finished_block_is_yielded_immediately(
    student: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    """A block is yielded before the block is written to the cache and before the noise of the next block is drawn."""
    drawn: list[int] = []
    noise = (drawn.append(1) or part for part in NOISE.split(2, dim=2))
    seen = calls_of(student)
    stream = generate_blocks(student, TEXT, noise, schedule, draw_from(3), window=6)
    next(stream)
    assert len(drawn) == 1
    assert len(seen) == len(schedule.denoising_timesteps)


@torch.no_grad()
def test_wrong_windows_and_noise_are_named(student: CausalWanTransformer3DModel, schedule: ScheduleConfig) -> None:
    with pytest.raises(
        ValueError, match="window is None and sink is 0; .* an iterable of noise blocks, needs a window"
    ):
        next(generate_blocks(student, TEXT, endless(1), schedule, draw_from(3)))
    with pytest.raises(ValueError, match="window is None and sink is 2; set window: a sink"):
        next(generate_blocks(student, TEXT, NOISE, schedule, draw_from(3), sink=2))
    with pytest.raises(ValueError, match="a block of noise has 3 latent frames; the blocks of the model have 2"):
        next(generate_blocks(student, TEXT, [NOISE[:, :, :3]], schedule, draw_from(3), window=6))
    with pytest.raises(ValueError, match="num_frames is 3"):
        next(generate_blocks(student, TEXT, endless(1), schedule, draw_from(3), window=3))
