"""Compiled layers train like uncompiled layers up to rounding, with every kind of checkpointing and distribution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch.profiler import profile

from causvid.compute.parallel import Checkpointing
from causvid.diffusion.schedule import ScheduleConfig
from causvid.sampling.autoregressive import rollout_with_gradient
from causvid.wan.transformer.wan import as_causal, build_transformer, for_training
from tests.conftest import ONE_WORKER
from tests.unit.training.conftest import curve, optimizer
from tests.unit.training.test_two_ranks import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # ignore warnings that torch's compiler causes within torch

STEPS = 3


@pytest.fixture(autouse=True)
def _compiled_again() -> Iterator[None]:
    """Compile in this process: two ranks are forks of this process, and a fork has no compiler threads."""
    with torch._inductor.config.patch(compile_threads=1), torch._dynamo.config.patch(recompile_limit=8):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


def train(name: str, kinds: dict[str, Any], work: Path, inputs: str = "data", **compute: Any) -> Any:
    changes = {"inputs": inputs} if "dmd" in name else {"optimizer": optimizer(learning_rate=1e-3)}
    run = kinds[name].new_run(work, steps=STEPS, **changes)
    run = replace(run, compute=replace(ONE_WORKER, **compute))
    kinds[name].train(run)
    return run


def assert_same(name: str, plain: Path, compiled: Path) -> None:
    for one, other in zip(curve(plain), curve(compiled), strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-6), name


def test_a_compiled_student_trains_like_an_uncompiled_student(kinds: dict[str, Any], tmp_path: Path) -> None:
    train("ode", kinds, tmp_path / "plain")
    train("ode", kinds, tmp_path / "compiled", compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same("ode", tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.parametrize("again", ["none", pytest.param("selective", marks=pytest.mark.slow)])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_rollout_of_many_blocks_stays_compiled(
    again: Checkpointing, truncated: bool, transformer_config: dict[str, Any], schedule: ScheduleConfig
) -> None:
    """Five blocks need 14 graphs (10 if truncated), and torch stops compiling after eight graphs by default."""
    student = as_causal(build_transformer(transformer_config, 0), frames_per_block=1)
    for_training(student, again, compiled=True)
    student.compile_repeated_blocks(backend="eager")
    noise, text = torch.ones(1, 4, 5, 4, 4), torch.ones(1, 5, 8)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for exit_step in range(2):
            x0 = rollout_with_gradient(
                student, text, noise, schedule, lambda frames: noise[:, :, :frames], exit_step, truncated=truncated
            )
            x0.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("again", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("teacher", "data"),
        ("dmd", "data"),
        ("dmd", "rollout"),
        ("dmd", "truncated_rollout"),
        ("dmd_sharing_samples", "rollout"),
        ("dmd_lora_critic", "data"),
    ],
)
def test_compiled_layers_train_like_uncompiled_layers(
    name: str, inputs: str, again: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    train(name, kinds, tmp_path / "plain", inputs)
    train(name, kinds, tmp_path / "compiled", inputs, compile=True, gradient_checkpointing=again)
    assert_same(name, tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("shard_weights", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("again", ["none", "selective"])
@pytest.mark.parametrize(("name", "inputs"), [("ode", "data"), ("dmd", "rollout")])
def test_compiled_layers_on_two_ranks(
    name: str, inputs: str, shard_weights: bool, again: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    train(name, kinds, tmp_path / "plain", inputs)
    compute = {"compile": True, "gradient_checkpointing": again, "shard_weights": shard_weights}
    on_two_ranks(tmp_path / "ranks", lambda _: train(name, kinds, tmp_path / "compiled", inputs, **compute))
    assert_same(name, tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("rolls_out", [False, True])
def test_selective_checkpointing_keeps_the_attention_of_compiled_layers(
    rolls_out: bool, transformer_config: dict[str, Any], schedule: ScheduleConfig
) -> None:
    """Checkpointing is compiled together with the layer; otherwise, the backward pass would compute attention again."""
    x, text = torch.ones(1, 4, 4, 4, 4), torch.ones(1, 5, 8)

    def predict(model: Any) -> torch.Tensor:
        if rolls_out:
            return rollout_with_gradient(model, text, x, schedule, lambda frames: x[:, :, :frames], 0, truncated=False)
        out: torch.Tensor = model(x, timestep=torch.tensor([500.0]), encoder_hidden_states=text, return_dict=False)[0]
        return out

    computed = {}
    for again in ("none", "selective", "full"):
        torch._dynamo.reset()
        model = build_transformer(transformer_config, 0)
        model = for_training(as_causal(model, 2) if rolls_out else model, again, compiled=True)
        model.compile_repeated_blocks()
        for _ in range(2):
            with profile() as seen:
                predict(model).sum().backward()
        computed[again] = sum(
            event.count for event in seen.key_averages() if event.key.endswith("flash_attention_for_cpu")
        )
    assert computed["selective"] == computed["none"] == computed["full"] / 2
