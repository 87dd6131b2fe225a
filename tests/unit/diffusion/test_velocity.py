"""Causal models accept timesteps [B] and bidirectional models accept timesteps [B, F], also in losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causvid.diffusion.velocity import conditional, guided
from causvid.methods.dmd.loss import dmd_loss
from causvid.methods.shared.flow_matching import flow_matching_loss
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import as_causal, build_transformer


def normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


X0, NOISE, TEXT, NEGATIVE = (
    normal(2, 4, 4, 4, 4, seed=1), normal(2, 4, 4, 4, 4, seed=2), normal(2, 3, 8, seed=3), normal(1, 3, 8, seed=4),
)  # fmt: skip
TIMES = torch.tensor([300.0, 800.0], dtype=torch.float64)
PER_FRAME = TIMES[:, None].expand(-1, 4)


@pytest.fixture
def causal(transformer_config: dict[str, Any]) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer(transformer_config, 0), 2).eval()


def test_losses_with_one_timestep_per_sample_work_with_a_causal_model(causal: CausalWanTransformer3DModel) -> None:
    """Timesteps [B] and timesteps [B, F] with the same value in every frame give the same loss."""
    seen: list[torch.Tensor] = []
    causal.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True)
    teacher, critic = guided(causal, TEXT, NEGATIVE, 2.0), conditional(causal, TEXT)
    losses = [
        (dmd_loss(X0, NOISE, times, teacher=teacher, critic=critic).loss, flow_matching_loss(critic, X0, NOISE, times))
        for times in (TIMES, PER_FRAME)
    ]
    for scalar, per_frame in zip(*losses, strict=True):
        assert torch.equal(scalar, per_frame)
        assert scalar > 0
    assert [tuple(times.shape) for times in seen] == [(4, 4), (2, 4), (2, 4)] * 2
    assert torch.equal(seen[1], PER_FRAME.float())
    # the first half is without the prompt, the second half with the prompt
    assert torch.equal(seen[0], PER_FRAME.float().repeat(2, 1))


def test_a_bidirectional_model_receives_one_timestep_per_sample(transformer_config: dict[str, Any]) -> None:
    model, seen = build_transformer(transformer_config, 0).eval(), []
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True)
    for times in (TIMES, PER_FRAME):
        conditional(model, TEXT)(X0, times)
    assert all(torch.equal(times, TIMES.float()) for times in seen)


def test_an_image_also_has_one_timestep(causal: CausalWanTransformer3DModel) -> None:
    assert conditional(causal, TEXT)(X0[:, :, :1], TIMES).shape == (2, 4, 1, 4, 4)
