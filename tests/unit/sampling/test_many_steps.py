"""Blockwise generation in many steps uses the Euler method with guidance, and a cache entry for each prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from causvid.diffusion.guidance import guide
from causvid.diffusion.schedule import ScheduleConfig
from causvid.sampling.autoregressive import solve_blocks
from causvid.sampling.ode_solver import solve_ode
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.kv_cache import KVCache
from causvid.wan.transformer.wan import as_causal, build_transformer


def normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


NOISE, TEXT, NEGATIVE = normal(2, 4, 6, 4, 4, seed=1), normal(2, 3, 8, seed=2), normal(1, 3, 8, seed=3)


@pytest.fixture
def model(transformer_config: dict[str, Any]) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer(transformer_config, 0), 2).eval()


@torch.no_grad()
@pytest.mark.parametrize("context_timestep", [0.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_block_attends_to_clean_earlier_blocks(
    model: CausalWanTransformer3DModel, scale: float, context_timestep: float
) -> None:
    """For both prompts, the result equals uncached forward passes over the clean blocks and the noisy block."""
    schedule = ScheduleConfig(shift=3.0, solver_steps=5, denoising_timesteps=(1000,), context_timestep=context_timestep)
    blocks = list(solve_blocks(model, TEXT, NEGATIVE, scale, NOISE, schedule))
    assert len(blocks) == 3
    for index, block in enumerate(blocks):
        past = blocks[:index]

        def uncached(x_t: torch.Tensor, timestep: torch.Tensor, past: list[torch.Tensor] = past) -> torch.Tensor:
            whole, before = torch.cat([*past, x_t], dim=2), 2 * len(past)
            times = torch.cat([torch.full((2, before), context_timestep), timestep[:, None].expand(-1, 2)], dim=1)
            uncond, cond = (
                model(whole, timestep=times, encoder_hidden_states=text, return_dict=False)[0][:, :, before:]
                for text in (NEGATIVE.expand(2, -1, -1), TEXT)
            )
            return guide(uncond, cond, scale)

        noise = NOISE[:, :, 2 * index : 2 * index + 2]
        expected = solve_ode(uncached, noise, schedule.grid.sigmas(schedule.solver_steps))[:, 0]
        torch.testing.assert_close(block, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_guidance_1_the_negative_prompt_is_not_used(
    model: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    plain = list(solve_blocks(model, TEXT, torch.full_like(NEGATIVE, float("nan")), 1.0, NOISE, schedule))
    assert set(rows) == {2}
    assert all(block.isfinite().all() for block in plain)
    # If both prompts are equal, every scale gives the conditional prediction: text + w (text - text).
    equal = solve_blocks(model, TEXT, TEXT, 3.0, NOISE, schedule)
    for ours, expected in zip(plain, equal, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


class _Constant:
    """A causal model whose velocity is the first number of the text embedding. The model records its inputs."""

    def __init__(self) -> None:
        self.config, self.dtype = FrozenDict(frames_per_block=2), torch.float64
        self.calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def make_kv_cache(self, **_: int) -> KVCache:
        memory = {"layers": 1, "batch": 4, "frames": 6, "frame_tokens": 1, "heads": 1, "head_dim": 1}
        return KVCache.allocate(**memory, like=torch.zeros((), dtype=torch.float64))

    def __call__(
        self,
        x: torch.Tensor,
        *,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        start_frame: int,
        **_: Any,
    ) -> tuple[torch.Tensor]:
        self.calls.append((start_frame, timestep, x))
        return (torch.zeros_like(x) + encoder_hidden_states[:, :1, :1, None, None],)


def test_a_constant_velocity_is_integrated_exactly(schedule: ScheduleConfig) -> None:
    """From sigma 1 to 0, every block changes by the guided velocity: 1 + 3 (2 - 1) or 1 + 3 (5 - 1)."""
    model: Any = _Constant()
    text = torch.tensor([2.0, 5.0], dtype=torch.float64)[:, None, None]
    noise = NOISE.double()
    blocks = list(solve_blocks(model, text, torch.ones(1, 1, 1, dtype=torch.float64), 3.0, noise, schedule))
    moved = torch.tensor([4.0, 13.0], dtype=torch.float64)[:, None, None, None, None]
    torch.testing.assert_close(torch.cat(blocks, dim=2), noise - moved, rtol=0, atol=1e-13)
    # Each block has four steps. If a block follows, a context pass with the finished block is added for both prompts.
    grid = [1000 * sigma for sigma in schedule.grid.sigmas(4).tolist()[:-1]]
    asked = [(start, times[0, 0].item()) for start, times, _ in model.calls]
    expected = [(start, time) for start in (0, 2, 4) for time in [*grid, 0.0]][:-1]
    assert [start for start, _ in asked] == [start for start, _ in expected]
    assert [time for _, time in asked] == pytest.approx([time for _, time in expected])
    assert all(times.shape == (4, 2) for _, times, _ in model.calls)
    for call, block in ((4, blocks[0]), (9, blocks[1])):
        assert torch.equal(model.calls[call][2], torch.cat([block, block]))


@torch.no_grad()
def test_known_blocks_and_windows_work_with_many_steps(
    model: CausalWanTransformer3DModel, schedule: ScheduleConfig
) -> None:
    whole = list(solve_blocks(model, TEXT, NEGATIVE, 3.0, NOISE, schedule))
    given = list(solve_blocks(model, TEXT, NEGATIVE, 3.0, NOISE, schedule, whole[0]))
    parts = solve_blocks(model, TEXT, NEGATIVE, 3.0, iter(NOISE.split(2, dim=2)), schedule, window=6)
    for ours, again, expected in zip(given, parts, whole, strict=True):
        assert torch.equal(ours, expected)
        torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
