"""Training steps with models of 1.3B parameters on the meta device have the right shapes, gradients and FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.distillation import prepared
from causvid import params
from causvid.compute import device as devices
from causvid.compute.precision import Precision
from causvid.costs import Clip, Flops
from causvid.data.stores.latent_store import Record, write_store
from causvid.methods.dmd import critic as critics
from causvid.methods.dmd import step as dmd
from causvid.methods.dmd.cost import DmdCost
from causvid.methods.dmd.samples import DmdRun
from causvid.methods.dmd.step import DmdStep
from causvid.methods.ode_init import step as ode_init
from causvid.methods.ode_init.config import OdeConfig
from causvid.methods.ode_init.step import OdeStep
from causvid.methods.shared import networks
from causvid.plan import Plan
from causvid.profile import Profile
from causvid.training.optimizers import Optimizer
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from tests.unit.training.conftest import network, with_inputs

WAN = params.read(params.PROFILES / "wan-1.3b.yaml")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DmdRun:
    """Return a DMD run on one clip of wan-1.3b, with models on the meta device and empty folders.

    Tensors on the meta device have no values, so the check of finite losses is disabled. autocast is disabled, because
    the meta device does not support autocast.
    """

    def load(folder: Path) -> WanTransformer3DModel:
        model = WAN["model"]
        with torch.device("meta"):
            if folder.name == "teacher":
                return WanTransformer3DModel(**model["transformer"])
            return CausalWanTransformer3DModel(**model["transformer"], frames_per_block=model["frames_per_block"])

    monkeypatch.setattr(devices, "pick", lambda: torch.device("meta"))
    for module in (dmd, critics, networks):
        monkeypatch.setattr(module, "load_transformer", load)
    monkeypatch.setattr(ode_init, "load_start", lambda folder, _: load(folder))
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda _: True)
    return replace(prepared(WAN, 1, tmp_path), precision=Precision.FLOAT32)


def updates_of(monkeypatch: pytest.MonkeyPatch, **networks: torch.nn.Module) -> list[dict[str, int]]:
    """Record, for every later update, how many weights of each network have a gradient.

    The update changes no weight.
    """
    found: list[dict[str, int]] = []

    def step(optimizer: Optimizer, _: int) -> torch.Tensor:
        found.append({n: sum(p.grad is not None for p in net.parameters()) for n, net in networks.items()})
        for parameter in optimizer.parameters:
            parameter.grad = None
        return torch.zeros((), device="meta")

    monkeypatch.setattr(Optimizer, "step", step)
    return found


def flops(run: Callable[[int], Any], index: int) -> float:
    """Return the FLOPs that PyTorch counts during step ``index``."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(index)
    return float(counter.get_total_flops())


def counted(costs: float, trained: Flops) -> Any:
    """Return the count that PyTorch should give for an update that costs ``costs`` FLOPs.

    ``with_checkpointing`` describes the arguments. The relative tolerance of 1e-4 covers the first and last layers, for
    which ``costs`` is not exact: the embedding of the timestep, and the input, which needs no gradient.
    """
    return pytest.approx(with_checkpointing(costs, trained), rel=1e-4)


def with_checkpointing(costs: float, trained: Flops) -> float:
    """Convert the planned FLOPs of an update into the FLOPs that PyTorch executes in these tests.

    The plan counts no recomputed activations; the tests use full checkpointing, which adds a forward pass. The plan counts
    the backward pass of attention as 2.5 forward passes, because a fused kernel computes the scores again; the tests
    compute attention with plain matrix products, whose backward pass costs 2 forward passes.

    Args:
        costs: Planned FLOPs of the update.
        trained: FLOPs of a forward pass of the trained network.
    """
    return costs + trained.forward - trained.attention / 2


def test_dmd(run: DmdRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one iteration that updates student and critic, and one iteration that updates the critic only."""
    step, plan = DmdStep(run), Plan(Profile.of(WAN))
    assert step.store.metadata["shape"] == [21, 16, 60, 104]
    models = {name: network(step, name) for name in ("student", "critic", "teacher")}
    for model in models.values():
        assert sum(weight.numel() for weight in model.parameters()) == plan.transformer.parameters
    found, every = updates_of(monkeypatch, **models), len(list(step.student.model.parameters()))
    iterations = [flops(step, index) for index in (0, 1)]
    critic = {"student": 0, "critic": every, "teacher": 0}
    assert found == [{"student": every, "critic": 0, "teacher": 0}, critic, critic]
    assert iterations[1] == counted(plan.dmd.critic, plan.clip.bidirectional)
    assert iterations[0] - iterations[1] == counted(plan.dmd.student, plan.clip.causal)


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "context_passes"), [("rollout", 6), ("truncated_rollout", 0)])
def test_rollouts(run: DmdRun, inputs: str, context_passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the FLOPs of updates on rollouts of seven blocks with one denoising step per block.

    Only keys and values of a context pass are used, so that its backward pass omits the head and most of the last layer.
    """
    config, one_step = replace(run.config, inputs=inputs), replace(run.record.schedule, denoising_timesteps=(1000.0,))
    step = DmdStep(replace(run, config=config, record=replace(run.record, schedule=one_step)))
    updates_of(monkeypatch)
    iterations = [flops(step, index) for index in (0, 1)]
    blocks = [step.clip.block_pass(block, text_cached=False) for block in range(7)]
    trained = Flops(*(sum(parts) for parts in zip(*blocks, *blocks[:context_passes], strict=True)))
    cost = DmdCost(clip=step.clip, config=config, few_steps=1, causal=True, scored=step.clip.in_blocks_of(None))
    assert iterations[1] == counted(cost.critic, step.clip.bidirectional)
    unused = sum(omitted(step.clip, block) for block in range(context_passes))
    assert iterations[0] - iterations[1] + unused == pytest.approx(with_checkpointing(cost.student, trained), rel=2e-4)


def omitted(clip: Clip, block: int) -> float:
    """Return the FLOPs that the backward pass of a context pass over ``block`` omits: last layer and head.

    In the last layer, only the projections to keys and values have a gradient.
    """
    transformer: Any = clip.transformer
    layer, ends = (
        replace(clip, transformer=replace(transformer, num_layers=count)).block_pass(block, text_cached=False)
        for count in (1, 0)
    )
    keys_values = 2 * 2 * transformer.width**2 * clip.block_tokens
    head = 2 * clip.block_tokens * math.prod(transformer.patch_size) * transformer.width * transformer.out_channels
    return 2 * (layer.linear - ends.linear - keys_values + head) + 2 * layer.attention


def test_ode_regression(run: DmdRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run one step of ODE regression that starts from a given student."""
    plan, times = Plan(Profile.of(WAN)), [*run.record.schedule.denoising_timesteps, 0.0]
    channels, *size = plan.latent.sizes
    states = torch.zeros(len(times), channels, *size)
    write_store([Record(states, "clip 0")], tmp_path / "pairs", timesteps=times, per_transaction=1)
    student = run.inputs["student"]
    student.mkdir()
    (student / "config.json").touch()  # marks the folder as a model; the test does not read the weights
    init = {"folder": student, "hub": None, "revision": None}
    section = {**WAN["train_ode_init"], "init": init, "batch_size": 1}
    run = with_inputs(run, pairs=tmp_path / "pairs")
    step = OdeStep(replace(run, config=params.build(OdeConfig, section, name="train_ode_init")))
    found = updates_of(monkeypatch, student=step.student.model)
    assert flops(step, 0) == counted(plan.clip.causal.training, plan.clip.causal)
    assert found == [{"student": len(list(step.student.model.parameters()))}]
