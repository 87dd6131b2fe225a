"""Training with several micro-batches per batch equals training with one micro-batch, up to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.methods.shared.batches import accumulate
from tests.conftest import ONE_WORKER
from tests.unit.training.conftest import curve, network, optimizer


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("teacher", {}),
        ("causal_teacher", {}),
        ("ode", {}),
        ("dmd", {"inputs": "data"}),
        ("dmd", {"inputs": "data", "clean_frames_in_loss": False}),
        ("dmd", {"inputs": "rollout", "image_share": 0.5}),
        ("dmd_sharing_samples", {"inputs": "rollout"}),
    ],
)
def test_several_micro_batches_train_like_one_micro_batch(
    name: str, changes: dict[str, Any], kinds: dict[str, Any], tmp_path: Path
) -> None:
    """All values of the training curve and all weights are equal. Every forward pass sees one micro-batch."""
    rate = optimizer(learning_rate=1e-3, decay="constant")
    changes = changes | ({"optimizer": rate} if "dmd" not in name else {})
    curves, weights = [], []
    for passes in (1, 2, 4):
        run = kinds[name].new_run(tmp_path / str(passes), steps=4, **changes)
        run = replace(run, compute=replace(ONE_WORKER, gradient_accumulation_steps=passes))
        step = kinds[name].step(run)
        last = {"dmd": "critic", "ode": "student"}.get(name.split("_")[0], "teacher")
        trained, seen = network(step, last), list[int]()
        trained.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(len(args[0])) if torch.is_grad_enabled() else None
        )
        step(0)
        assert seen == [4 // passes] * passes
        kinds[name].train(run)
        curves.append(curve(run.work))
        weights.append(torch.load(run.work / "checkpoints" / "step-0000004" / "state.pt")["parts"])
    for rows, parts in zip(curves[1:], weights[1:], strict=True):
        for one, several in zip(curves[0], rows, strict=True):
            assert several == pytest.approx(one, rel=2e-3, abs=1e-6)
        for trainee in {"model", "student_model", "critic_model"} & parts.keys():
            for key, value in weights[0][trainee].items():
                torch.testing.assert_close(parts[trainee][key], value, rtol=1e-3, atol=1e-3)


def test_a_batch_that_does_not_divide_into_micro_batches_is_rejected(kinds: dict[str, Any], tmp_path: Path) -> None:
    run = kinds["ode"].new_run(tmp_path)
    step = kinds["ode"].step(replace(run, compute=replace(ONE_WORKER, gradient_accumulation_steps=3)))
    with pytest.raises(ValueError, match=r"4 samples of a batch do not divide into 3 micro-batches; change"):
        step(0)


def test_less_than_one_micro_batch_is_rejected() -> None:
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 0; it must be at least 1"):
        replace(ONE_WORKER, gradient_accumulation_steps=0)


def test_a_loss_that_is_not_finite_stops_before_its_gradients_are_computed() -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 7: the loss is nan"):
        accumulate(model, [1.0, float("nan")], lambda part: model(torch.ones(1)).sum() * part, 7)  # type: ignore[list-item]
