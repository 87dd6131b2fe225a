"""Test DMD with a causal teacher (Table 4 of the paper), whose weights also initialise the critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.diffusion.velocity import Velocity, conditional, guided
from causvid.methods.dmd.loss import dmd_loss
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import as_causal, load_transformer
from tests.unit.training.conftest import network, with_inputs

FRAMES, BLOCK = 4, 2


@pytest.fixture
def new_run(kinds: dict[str, Any], world: Path, tmp_path: Path) -> Any:
    """Return a function that creates DMD runs whose teacher is a causal model with blocks of two frames."""
    as_causal(load_transformer(world / "teacher"), BLOCK).save_pretrained(tmp_path / "teacher")

    def make(folder: str, **changes: Any) -> Any:
        return with_inputs(kinds["dmd"].new_run(tmp_path / folder, **changes), teacher=tmp_path / "teacher")

    return make


def test_dmd_trains_with_a_causal_teacher(kinds: dict[str, Any], new_run: Any) -> None:
    step = kinds["dmd"].step(new_run("run"))
    asked: dict[str, set[tuple[int, ...]]] = {"teacher": set(), "critic": set()}
    for name, shapes in asked.items():
        assert isinstance(network(step, name), CausalWanTransformer3DModel)
        network(step, name).register_forward_pre_hook(
            lambda _, __, kwargs, shapes=shapes: shapes.add(tuple(kwargs["timestep"].shape)), with_kwargs=True
        )
    critic = {name: value.clone() for name, value in step.critic.model.state_dict().items()}
    values = [step(index) for index in range(3)]
    assert all(value.isfinite() for row in values for value in row.values())
    assert [("student_loss" in row) for row in values] == [False, True, False]
    assert asked == {"teacher": {(8, FRAMES)}, "critic": {(4, FRAMES)}}  # guidance doubles the batch of the teacher
    assert any(not torch.equal(value, critic[name]) for name, value in step.critic.model.state_dict().items())


@pytest.mark.parametrize("frames_per_block", [1, BLOCK])
def test_the_scores_of_a_causal_teacher_are_counted_with_its_blocks(
    frames_per_block: int, kinds: dict[str, Any], new_run: Any, world: Path, tmp_path: Path
) -> None:
    run = new_run("causal")
    as_causal(load_transformer(world / "teacher"), frames_per_block).save_pretrained(tmp_path / "teacher")
    causal, plain = (kinds["dmd"].step(it) for it in (run, with_inputs(new_run("plain"), teacher=world / "teacher")))
    clip = causal.clip.in_blocks_of(frames_per_block)
    saved = clip.bidirectional.training - clip.causal.training
    assert plain.counts(0).flops - causal.counts(0).flops == pytest.approx(run.config.batch_size * saved)
    saved += 3 * (clip.bidirectional.forward - clip.causal.forward)  # guidance doubles the pass of the teacher
    assert plain.counts(1).flops - causal.counts(1).flops == pytest.approx(run.config.batch_size * saved)


def test_batches_of_images_can_be_trained_on(kinds: dict[str, Any], new_run: Any) -> None:
    step = kinds["dmd"].step(new_run("images", image_share=1.0))
    assert all(value.isfinite() for index in (0, 1) for value in step(index).values())


def scores(step: Any, sample: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs of teacher and critic for ``sample``, and the gradient of the DMD loss for the student."""
    text = step.texts([step.captions[0]])
    teacher: Velocity = guided(network(step, "teacher"), text, step.texts.negative(), 2.0)
    critic = conditional(step.critic.model, text)
    times = torch.full((1,), 600.0)
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        found = {"teacher": teacher(sample, times), "critic": critic(sample, times)}
    leaf = sample.clone().requires_grad_(True)
    out = dmd_loss(leaf, noise, times, teacher=teacher, critic=critic)
    out.loss.backward()
    assert leaf.grad is not None
    return {**found, "gradient": leaf.grad * out.normaliser}  # the normaliser is a mean over all frames


def test_the_score_of_a_block_does_not_depend_on_later_blocks(kinds: dict[str, Any], new_run: Any, world: Path) -> None:
    """Only with a bidirectional teacher do scores and gradient of the first block depend on the second block."""
    sample = torch.randn(1, 4, FRAMES, 4, 4, generator=torch.Generator().manual_seed(3))
    later, earlier = sample.clone(), sample.clone()
    later[:, :, BLOCK:] += 1
    earlier[:, :, :BLOCK] += 1
    causal, plain = (
        kinds["dmd"].step(run) for run in (new_run("causal"), with_inputs(new_run("plain"), teacher=world / "teacher"))
    )
    for step in (causal, plain):
        step(0)  # the update makes the critic differ from the teacher, so that the gradient is not zero
        step(1)
    for name in ("teacher", "critic", "gradient"):
        before, after = (scores(causal, x)[name][:, :, :BLOCK] for x in (sample, later))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
        moved = (scores(plain, later)[name] - scores(plain, sample)[name])[:, :, :BLOCK]
        assert moved.abs().max() > 1e-3 * before.abs().max()
        past = (scores(causal, earlier)[name] - scores(causal, sample)[name])[:, :, BLOCK:]
        assert past.abs().max() > 1e-3 * before.abs().max()  # the score of a block depends on the earlier block


def test_the_critic_loss_of_a_block_has_no_gradient_to_later_blocks(kinds: dict[str, Any], new_run: Any) -> None:
    step = kinds["dmd"].step(new_run("run"))
    x_t = torch.randn(1, 4, FRAMES, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    velocity = conditional(step.critic.model, step.texts([step.captions[0]]))(x_t, torch.full((1,), 600.0))
    (gradient,) = torch.autograd.grad(velocity[:, :, :BLOCK].square().sum(), x_t)
    assert gradient[:, :, :BLOCK].abs().max() > 0
    assert gradient[:, :, BLOCK:].abs().max() == 0
