"""Training steps at the released size on the meta device: the real code, shapes, gradients and FLOPs, no numbers."""

from __future__ import annotations

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
from causvid.costs import Flops
from causvid.data.latent_store import Record, write_store
from causvid.models.causal_wan import CausalWanTransformer3DModel
from causvid.plan import Plan
from causvid.runtime import device as devices
from causvid.training import dmd_step, ode_step
from causvid.training.dmd_step import DmdJob, DmdStep
from causvid.training.ode_step import OdeConfig, OdeJob, OdeStep
from causvid.training.optimizers import Optimizer

WAN = params.read(params.PROFILES / "wan-1.3b.yaml")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DmdJob:
    """DMD of one clip of wan-1.3b. Its models are on the meta device and their folders empty.

    What a number decides is passed over: whether the loss is finite. What the meta device has not, too: autocast.
    """

    def load(folder: Path) -> WanTransformer3DModel:
        model = WAN["model"]
        with torch.device("meta"):
            if folder.name == "teacher":
                return WanTransformer3DModel(**model["transformer"])
            return CausalWanTransformer3DModel(**model["transformer"], frames_per_block=model["frames_per_block"])

    monkeypatch.setattr(devices, "pick", lambda: torch.device("meta"))
    for module in (dmd_step, ode_step):
        monkeypatch.setattr(module, "load_transformer", load)
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda _: True)
    return replace(prepared(WAN, 1, tmp_path), precision=devices.Precision.FLOAT32)


def updates_of(monkeypatch: pytest.MonkeyPatch, **networks: torch.nn.Module) -> list[dict[str, int]]:
    """Of every update from now on, how many weights of each network have a gradient. Weights stay as they are."""
    found: list[dict[str, int]] = []

    def step(optimizer: Optimizer, _: int) -> torch.Tensor:
        found.append({n: sum(p.grad is not None for p in net.parameters()) for n, net in networks.items()})
        for parameter in optimizer.parameters:
            parameter.grad = None
        return torch.zeros((), device="meta")

    monkeypatch.setattr(Optimizer, "step", step)
    return found


def flops(run: Callable[[int], Any], index: int) -> float:
    """Counted by PyTorch during step ``index``."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(index)
    return float(counter.get_total_flops())


def counted(costs: float, trained: Flops) -> Any:
    """What the counter shows for an update of ``costs`` that trains a network by a pass of ``trained``.

    Full checkpointing makes the layers once more; and attention as plain matrix products keeps its scores, which costs
    lets be made again: backward is 2 times forward, not 2.5. Blocks of causal attention add up to the costs' closed
    form. A part in 10,000 for the ends of a network: its times' embedding, and an input that needs no gradient.
    """
    return pytest.approx(costs + trained.forward - trained.attention / 2, rel=1e-4)


def test_dmd(job: DmdJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration with the student's turn, and one without."""
    step, plan = DmdStep(job), Plan(WAN)
    assert step.store.metadata["shape"] == [21, 16, 60, 104]
    networks = {"student": step.student, "critic": step.critic, "teacher": step.teacher}
    for network in networks.values():
        assert sum(weight.numel() for weight in network.parameters()) == plan.transformer.parameters
    found, every = updates_of(monkeypatch, **networks), len(list(step.student.parameters()))
    iterations = [flops(step, index) for index in (0, 1)]
    critic = {"student": 0, "critic": every, "teacher": 0}
    assert found == [{"student": every, "critic": 0, "teacher": 0}, critic, critic]
    of_student, of_critic = plan.dmd
    assert iterations[1] == counted(of_critic, plan.clip.bidirectional)
    assert iterations[0] - iterations[1] == counted(of_student, plan.clip.causal)


def test_ode_regression(job: DmdJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One step, from a student that is brought."""
    plan, times = Plan(WAN), [*job.schedule.denoising_timesteps, 0.0]
    channels, *size = plan.latent.sizes
    states = torch.zeros(len(times), channels, *size)
    write_store([Record(states, "clip 0")], tmp_path / "pairs", timesteps=times, per_transaction=1)
    job.student.mkdir()
    (job.student / "config.json").touch()  # here is a model, it says; none is read
    init = {"folder": job.student, "hub": None, "revision": None}
    section = {**WAN["train_ode_init"], "init": init, "batch_size": 1}
    step = OdeStep(
        OdeJob(
            config=params.build(OdeConfig, section, name="train_ode_init"), pairs=tmp_path / "pairs",
            frames_per_block=WAN["model"]["frames_per_block"], schedule=job.schedule, seed=job.seed,
            precision=job.precision, compute=job.compute, prompts=job.prompts, teacher=job.teacher, work=job.work,
            tracker=job.tracker, watch=job.watch, made_from=job.made_from, vae=job.vae, clips=job.clips,
        )
    )  # fmt: skip
    found = updates_of(monkeypatch, student=step.model)
    assert flops(step, 0) == counted(plan.clip.causal.training, plan.clip.causal)
    assert found == [{"student": len(list(step.model.parameters()))}]
