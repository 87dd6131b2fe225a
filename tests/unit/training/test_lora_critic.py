"""Test that only the adapter is trained if the critic is the teacher with a LoRA adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.compute.precision import Precision
from causvid.diffusion.velocity import conditional
from causvid.wan.transformer.wan import load_transformer
from tests.conftest import ONE_WORKER
from tests.unit.training.conftest import SHARED, lora_critic, network, optimizer

X = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([300.0, 900.0])


def lora_weights(step: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in step.critic.model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("shares", [False, True])
def test_the_adapter_is_trained_and_the_teacher_does_not_change(
    shares: bool, kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    options = SHARED if shares else {}
    step = kinds["dmd_lora_critic"].step(kinds["dmd_lora_critic"].new_run(tmp_path, steps=8, **options))
    text = step.texts(step._read(0).prompts[:2])
    teacher = conditional(load_transformer(world / "teacher"), text)
    before, base = (
        lora_weights(step),
        {n: p.clone() for n, p in step.critic.model.named_parameters() if "lora_" not in n},
    )
    with torch.no_grad():
        assert torch.equal(conditional(step.critic.model, text)(X, TIMES), teacher(X, TIMES))
    assert any(name.endswith("ffn.net.0.proj.lora_A.default.weight") for name in before)
    values = [step(index) for index in range(8)]
    assert any("student_loss" in found for found in values)
    assert all(not torch.equal(value, before[name]) for name, value in lora_weights(step).items())
    assert all(torch.equal(p, base[n]) for n, p in step.critic.model.named_parameters() if "lora_" not in n)
    step.scores.scale = 1.0
    with torch.no_grad():
        assert torch.equal(step.scores.teacher(text, step.texts.negative())(X, TIMES), teacher(X, TIMES))
        assert not torch.allclose(conditional(step.critic.model, text)(X, TIMES), teacher(X, TIMES), atol=1e-4)


def test_the_adapter_has_gradients_after_a_call_of_the_teacher(kinds: dict[str, Any], tmp_path: Path) -> None:
    """A call of the teacher disables the adapter.

    The next call of the critic must enable the adapter with gradients.
    """
    step = kinds["dmd_lora_critic"].step(kinds["dmd_lora_critic"].new_run(tmp_path))
    with torch.no_grad():
        step.scores.teacher(step.texts(step._read(0).prompts[:2]), step.texts.negative())(X, TIMES)
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in step.critic.model.named_parameters())


def test_the_critic_fits_the_samples_of_the_student(kinds: dict[str, Any], tmp_path: Path) -> None:
    """The loss of the adapter decreases, although less than the loss of a critic with separate weights."""
    losses = {}
    for name, rank in (("full", None), ("lora", 4)):
        run = kinds["dmd"].new_run(
            tmp_path / name,
            steps=60,
            critic_only_steps=60,
            **lora_critic(rank),
            critic_optimizer=optimizer(decay="constant"),
        )
        step = kinds["dmd"].step(run)
        found = [float(step(index)["critic_loss"]) for index in range(60)]
        losses[name] = sum(found[-10:]) / sum(found[:10])
    assert losses["full"] < losses["lora"] < 0.97


def test_a_checkpoint_contains_no_frozen_weights(kinds: dict[str, Any], tmp_path: Path) -> None:
    kind = kinds["dmd_lora_critic"]
    kind.train(kind.new_run(tmp_path, steps=2))
    parts = torch.load(tmp_path / "checkpoints" / "step-0000002" / "state.pt")["parts"]
    assert parts["critic_model"]
    assert all("lora_" in name for name in parts["critic_model"])


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch warns about a slower kernel for norm_q
def test_frozen_weights_are_kept_in_the_precision_of_matrix_products(kinds: dict[str, Any], tmp_path: Path) -> None:
    for name in ("dmd", "dmd_lora_critic"):
        step = kinds[name].step(kinds[name].new_run(tmp_path / name, precision=Precision.BFLOAT16))
        frozen = {n: p.dtype for n, p in network(step, "teacher").named_parameters() if not p.requires_grad}
        assert (
            frozen["blocks.0.attn1.to_q.base_layer.weight" if "lora" in name else "blocks.0.attn1.to_q.weight"]
            == torch.bfloat16
        )
        assert frozen["blocks.0.scale_shift_table"] == torch.float32
        trained = [p for trainee in (step.student, step.critic) for p in trainee.model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        values = [step(index) for index in range(3)]
        assert all(value.isfinite() for found in values for value in found.values())


def test_gradient_checkpointing_does_not_change_the_training(kinds: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for again in ("none", "selective", "full"):
        run = kinds["dmd_lora_critic"].new_run(tmp_path / again)
        step = kinds["dmd_lora_critic"].step(replace(run, compute=replace(ONE_WORKER, gradient_checkpointing=again)))
        for index in range(3):
            step(index)
        found.append(lora_weights(step))
    assert all(torch.equal(other[name], value) for other in found[1:] for name, value in found[0].items())
