"""The rollout of DMD equals the video of the sampler, and its gradients equal those of a computation without a cache.

The reference computes each block in one forward pass, whose input is the clean earlier blocks followed by the noisy
block. In the reference for truncated rollouts, no gradient flows to the earlier blocks. A video has 3 blocks; a block has
2 latent frames of 4 x 4 latent pixels, which are 8 tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention

from causvid.compute.parallel import Checkpointing
from causvid.diffusion.flow import sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.sampling.autoregressive import generate_blocks, rollout_with_gradient
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.rope import Rotary, rotate
from causvid.wan.transformer.wan import as_causal, build_transformer, for_training

NOISE = torch.randn(2, 4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
WEIGHT = torch.randn(
    2, 4, 6, 4, 4, generator=torch.Generator().manual_seed(3)
)  # weight of each value of x0 in the losses
STEPS = (1000.0, 750.0, 500.0)
SCHEDULE = ScheduleConfig(shift=3.0, solver_steps=4, denoising_timesteps=STEPS, context_timestep=20.0)

TRUNCATED = pytest.mark.parametrize("truncated", [False, True])

Gradients = dict[str, torch.Tensor]
Pass = tuple[int, float, torch.Tensor, torch.Tensor]  # start frame, timestep, input and output of a call


@pytest.fixture
def student(transformer_config: dict[str, Any]) -> CausalWanTransformer3DModel:
    """Return a student in which every weight matters. (In diffusers, biases start at 0 and gains at 1.)"""
    model = build_transformer(transformer_config, seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return as_causal(model, 2).train()


def rollout(
    student: CausalWanTransformer3DModel, exit_step: int, noise: torch.Tensor = NOISE, *, truncated: bool
) -> torch.Tensor:
    return rollout_with_gradient(student, TEXT, noise, SCHEDULE, draw_from(5), exit_step, truncated=truncated)


def draw_from(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda frames: torch.randn(2, 4, frames, 4, 4, generator=generator)


def gradients(student: CausalWanTransformer3DModel, loss: torch.Tensor) -> Gradients:
    student.zero_grad()
    loss.backward()
    found = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_same(ours: Gradients, theirs: Gradients) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=2e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


def passes_of(student: CausalWanTransformer3DModel) -> list[Pass]:
    """Record every later forward pass of the student."""
    seen: list[Pass] = []
    student.register_forward_hook(
        lambda _, args, kwargs, out: seen.append(
            (kwargs.get("start_frame", 0), kwargs["timestep"][0, 0].item(), args[0].detach().clone(), out[0])
        ),
        with_kwargs=True,
    )
    return seen


class DetachedPast:
    """Compute attention by its definition. Only the keys and values of the last block have a gradient."""

    def __call__(
        self, attn: WanAttention, x: torch.Tensor, _: None, __: None, rotary: Rotary, *, block_tokens: int, **___: None
    ) -> torch.Tensor:
        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(2, (attn.heads, -1))

        def held(kept: torch.Tensor) -> torch.Tensor:
            return torch.cat([kept[:, :-block_tokens].detach(), kept[:, -block_tokens:]], dim=1)

        query = rotate(heads(attn.norm_q(attn.to_q(x))), rotary)
        key, value = held(rotate(heads(attn.norm_k(attn.to_k(x))), rotary)), held(heads(attn.to_v(x)))
        block = torch.arange(x.shape[1]) // block_tokens
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        share = scores.masked_fill(block[None, :] > block[:, None], -torch.inf).softmax(dim=-1)
        out: torch.Tensor = attn.to_out[0](torch.einsum("bhqk,bkhd->bqhd", share, value).flatten(2))
        return out


def uncached(student: CausalWanTransformer3DModel, past: torch.Tensor, x_t: torch.Tensor, time: float) -> torch.Tensor:
    """Return x0 of the block ``x_t`` at timestep ``time`` after the clean blocks ``past``."""
    times = torch.cat([torch.full((2, past.shape[2]), 20.0), torch.full((2, 2), time)], dim=1)
    velocity = student(torch.cat([past, x_t], dim=2), timestep=times, encoder_hidden_states=TEXT, return_dict=False)[0]
    return velocity_to_x0(x_t, velocity[:, :, -2:], sigma_of(times[:, -2:]))


@TRUNCATED
def test_at_the_last_step_the_rollout_equals_the_video_of_the_sampler(
    student: CausalWanTransformer3DModel, truncated: bool
) -> None:
    """The rollout and the video of the sampler are equal bit for bit, with and without gradients."""
    with torch.no_grad():
        expected = torch.cat(list(generate_blocks(student, TEXT, NOISE, SCHEDULE, draw_from(5))), dim=2)
        assert torch.equal(rollout(student, exit_step=2, truncated=truncated), expected)
    ours = rollout(student, exit_step=2, truncated=truncated)
    assert ours.requires_grad
    assert torch.equal(ours, expected)
    sampled = torch.cat(list(generate_blocks(student, TEXT, NOISE, SCHEDULE, draw_from(5))), dim=2)
    assert not sampled.requires_grad
    assert torch.equal(sampled, expected)


@TRUNCATED
@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_a_block_is_denoised_to_the_exit_step_and_then_written(
    student: CausalWanTransformer3DModel, exit_step: int, truncated: bool
) -> None:
    """One denoising pass per block has a gradient. The context pass has one if the rollout is not truncated.

    The last block is not written to the cache, because no block follows.
    """
    seen = passes_of(student)
    video = rollout(student, exit_step, truncated=truncated)
    passes = [*((time, time == STEPS[exit_step]) for time in STEPS[: exit_step + 1]), (20.0, not truncated)]
    expected = [(start, *each) for start in (0, 2, 4) for each in passes][:-1]
    assert [(start, time, out.requires_grad) for start, time, _, out in seen] == expected
    written = [x for _, time, x, _ in seen if time == 20.0]
    assert torch.equal(torch.cat(written, dim=2), video[:, :, :4])


@pytest.mark.parametrize("frames", [slice(0, 2), slice(2, 4), slice(4, 6), slice(0, 6)])
@pytest.mark.parametrize("exit_step", [0, 2])
def test_the_gradient_equals_that_of_a_computation_without_a_cache(
    student: CausalWanTransformer3DModel, exit_step: int, frames: slice
) -> None:
    """Compare losses on one block and on all blocks, for all weights."""
    seen = passes_of(student)
    video = rollout(student, exit_step, truncated=False)
    ours = gradients(student, (video * WEIGHT)[:, :, frames].sum())
    shown = [x for _, time, x, _ in seen if time == STEPS[exit_step]]
    again = NOISE[:, :, :0]
    for x_t in shown:
        again = torch.cat([again, uncached(student, again, x_t, STEPS[exit_step])], dim=2)
    torch.testing.assert_close(video, again, rtol=1e-5, atol=1e-5)
    assert_same(ours, gradients(student, (again * WEIGHT)[:, :, frames].sum()))


@pytest.mark.parametrize("frames", [slice(0, 2), slice(2, 4), slice(4, 6), slice(0, 6)])
@pytest.mark.parametrize("exit_step", [0, 2])
def test_in_a_truncated_rollout_earlier_blocks_are_constants(
    student: CausalWanTransformer3DModel, exit_step: int, frames: slice
) -> None:
    seen = passes_of(student)
    video = rollout(student, exit_step, truncated=True)
    ours = gradients(student, (video * WEIGHT)[:, :, frames].sum())
    shown = [x for _, time, x, _ in seen if time == STEPS[exit_step]]
    for block in student.blocks:
        block.attn1.set_processor(DetachedPast())
    past = video.detach()
    blocks = [uncached(student, past[:, :, : 2 * k], x_t, STEPS[exit_step]) for k, x_t in enumerate(shown)]
    again = torch.cat(blocks, dim=2)
    torch.testing.assert_close(video, again, rtol=1e-5, atol=1e-5)
    assert_same(ours, gradients(student, (again * WEIGHT)[:, :, frames].sum()))


@TRUNCATED
def test_the_loss_of_a_block_has_a_gradient_to_no_later_block(
    student: CausalWanTransformer3DModel, truncated: bool
) -> None:
    """In a truncated rollout, the loss of a block has no gradient to earlier blocks, either."""
    seen = passes_of(student)
    video = rollout(student, exit_step=1, truncated=truncated)
    predictions = [out for _, time, _, out in seen if time == STEPS[1]]
    for k in range(3):
        loss = (video * WEIGHT)[:, :, 2 * k : 2 * k + 2].sum()
        reached = torch.autograd.grad(loss, predictions, retain_graph=True, allow_unused=True, materialize_grads=True)
        found = [gradient.abs().max().item() > 0 for gradient in reached]
        assert found == [block == k or (block < k and not truncated) for block in range(3)]


@TRUNCATED
def test_a_rollout_does_not_depend_on_noise_of_later_blocks(
    student: CausalWanTransformer3DModel, truncated: bool
) -> None:
    other = torch.cat([NOISE[:, :, :2], -NOISE[:, :, 2:]], dim=2)
    ours, theirs = (rollout(student, 2, noise, truncated=truncated) for noise in (NOISE, other))
    assert torch.equal(ours[:, :, :2], theirs[:, :, :2])
    assert not torch.allclose(ours[:, :, 4:], theirs[:, :, 4:], atol=1e-3)


@TRUNCATED
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_gradient_checkpointing_changes_no_gradient_of_a_rollout(
    student: CausalWanTransformer3DModel, kind: Checkpointing, truncated: bool
) -> None:
    """The backward pass computes only passes with gradients again, with the keys and values of the first computation."""
    plain = gradients(student, (rollout(student, 1, truncated=truncated) * WEIGHT).sum())
    for_training(student, kind)
    made: list[int] = []
    student.blocks[0].register_forward_pre_hook(lambda *_: made.append(1))
    video = rollout(student, 1, truncated=truncated)
    forward = len(made)
    recomputed = gradients(student, (video * WEIGHT).sum())
    assert len(made) == forward + 3 + (0 if truncated else 2)  # two blocks have a context pass
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in plain.items())


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch warns about a slower kernel for norm_q
@TRUNCATED
def test_in_bfloat16_every_weight_has_a_gradient(student: CausalWanTransformer3DModel, truncated: bool) -> None:
    """autocast must not use a cast of a weight that was cached in a forward pass without gradients."""
    exact = gradients(student, (rollout(student, 2, truncated=truncated) * WEIGHT).sum())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        video = rollout(student, 2, truncated=truncated)
    rough = gradients(student, (video * WEIGHT).sum())
    for name, gradient in exact.items():
        assert torch.cosine_similarity(rough[name].flatten(), gradient.flatten(), dim=0) > 0.9, name


@TRUNCATED
def test_an_image_is_one_block(student: CausalWanTransformer3DModel, truncated: bool) -> None:
    """A single latent frame is one block, although the student has larger blocks."""
    seen = passes_of(student)
    picture = rollout(student, 1, NOISE[:, :, :1], truncated=truncated)
    assert picture.shape == (2, 4, 1, 4, 4)
    assert [(start, time, out.requires_grad) for start, time, _, out in seen] == [(0, 1000.0, False), (0, 750.0, True)]
    gradients(student, (picture * WEIGHT[:, :, :1]).sum())
    with pytest.raises(ValueError, match="frames_per_block is 2; 5 latent frames divide into blocks of 1, 5"):
        rollout(student, 1, NOISE[:, :, :5], truncated=truncated)
