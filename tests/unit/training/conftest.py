"""Define training runs on the toy world, and a tracker that records nothing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from causvid import params
from causvid.compute.precision import Precision
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.tracking import Watch
from causvid.methods.dmd.config import DmdConfig
from causvid.methods.dmd.step import DmdStep, train_dmd
from causvid.methods.ode_init.config import OdeConfig
from causvid.methods.ode_init.step import OdeStep, train_ode_init
from causvid.methods.shared.recording import Clips, student_record, teacher_record
from causvid.methods.teacher.config import TeacherConfig
from causvid.methods.teacher.step import TeacherStep, train_teacher
from causvid.methods.vae.config import VaeConfig
from causvid.methods.vae.step import VaeStep, train_vae
from causvid.record import CacheRule
from causvid.speed import Counts
from causvid.training.checkpoint import Stateful
from causvid.training.config import OptimizerConfig
from causvid.training.pretrained import Init
from causvid.training.run import Run
from causvid.training.trainer import CURVE
from tests.conftest import ONE_WORKER, TEACHER, VIDEO

WATCH = Watch(samples_every=0, samples=2, keep_checkpoints_every=None)

SCRATCH = Init(folder=Path("no such folder"), hub=None, revision=None)


class SilentTracker:
    """A tracker that ignores everything."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Do nothing."""

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str) -> None:
        """Do nothing."""

    def log_model(self, name: str, path: Path, key: str) -> None:
        """Do nothing."""


class TrainingStep(Protocol):
    """The methods of every step object that the tests use."""

    def state(self) -> dict[str, Stateful]: ...

    def __call__(self, step: int) -> dict[str, torch.Tensor]: ...

    def counts(self, step: int) -> Counts: ...


@dataclass(frozen=True)
class Kind:
    """Describe a method by the function that creates a run, the class of its steps, and the training function."""

    new_run: Callable[..., Any]
    step: Callable[[Any], TrainingStep]
    train: Callable[[Any], None]


def optimizer(kind: str = "adamw", **changes: Any) -> OptimizerConfig:
    values: dict[str, Any] = {
        "kind": kind,
        "learning_rate": 1e-2,
        "betas": (0.9, 0.99),
        "weight_decay": 0.01,
        "grad_clip": 1.0,
        "warmup_steps": 2,
        "decay": "cosine",
    }
    return OptimizerConfig(**{**values, **changes})


def with_inputs(run: Any, **paths: Path) -> Any:
    """Return ``run`` with the input paths ``paths``."""
    return replace(run, inputs={**run.inputs, **paths})


SHARED: dict[str, Any] = {"share_samples": True}  # DMD options with which student and critic share samples


def lora_critic(rank: int | None) -> dict[str, Any]:
    """Return the DMD options for a critic with a LoRA adapter of ``rank``; None: a critic with separate weights."""
    return {"critic_lora_rank": rank}


def with_blocks(run: Any, frames_per_block: int | None) -> Any:
    """Return ``run`` for a model with blocks of ``frames_per_block`` latent frames; None: a bidirectional model."""
    changes: dict[str, Any] = {"frames_per_block": frames_per_block}
    if hasattr(run.record, "cache"):
        changes["cache"] = None if frames_per_block is None else CacheRule()
    return replace(run, record=replace(run.record, **changes))


def network(step: Any, name: str) -> Any:
    """Return the network ``name`` of a step object: "student", "critic" or "teacher"."""
    if name == "teacher" and hasattr(step, "scores"):
        # a critic with an adapter shares the weights of the teacher
        return getattr(step.scores, "model", step.critic.model)
    return getattr(step, name).model


def laptop_optimizers(name: str) -> dict[str, OptimizerConfig]:
    """Return the optimizers that the laptop profile has for the kind ``name``."""
    section = {"teacher": "train_teacher", "ode": "train_ode_init", "dmd": "train_dmd"}[name]
    values = params.read(params.PROFILES / "laptop.yaml")[section]
    return {
        key: params.build(OptimizerConfig, value, name=key)
        for key, value in values.items()
        if key.endswith("optimizer")
    }


def curve(folder: Path) -> list[dict[str, float]]:
    """Return the rows of the training curve in ``folder``, one row per step."""
    with (folder / CURVE).open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_losses(one: Path, other: Path, *, steps: int) -> None:
    """Compare every loss of ``steps`` steps, with a relative tolerance of 1e-5."""
    ours, theirs = curve(one), curve(other)
    assert len(ours) == len(theirs) == steps
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        for column in (name for name in mine if name.endswith("loss")):
            assert its[column] == pytest.approx(mine[column], rel=1e-5), f"{column} of step {mine['step']:.0f}"


@pytest.fixture
def kinds(
    world: Path, schedule: ScheduleConfig, transformer_config: dict[str, Any], vae_config: dict[str, Any]
) -> dict[str, Kind]:
    """Return every kind of training on the toy world. Six steps are enough for every part of the state to matter."""
    clips = Clips(video=VIDEO, latents=TEACHER.latents)

    def run(work: Path, config: Any, record: Any, inputs: Mapping[str, Path], **changes: Any) -> Run[Any, Any]:
        values: dict[str, Any] = {
            "config": config, "record": record, "seed": 0, "precision": Precision.FLOAT32, "compute": ONE_WORKER,
            "watch": WATCH, "tracker": SilentTracker(), "made_from": {"params": "0"}, "work": work, "inputs": inputs,
        }  # fmt: skip
        return Run(**{**values, **changes})

    def teacher(
        work: Path, *, causal: bool = False, steps: int = 6, precision: Precision = Precision.FLOAT32, **changes: Any
    ) -> Any:
        values: dict[str, Any] = {
            "init": SCRATCH, "steps": steps, "batch_size": 4, "optimizer": optimizer("muon"),
            "prompt_dropout": 0.5, "ema_decay": 0.5, "checkpoint_every": 2, **changes,
        }  # fmt: skip
        config, inputs = TeacherConfig(**values), {"latents": world / "lmdb" / "latents", "prompts": world / "prompts"}
        inputs |= {"start": world / "teacher"} if causal else {}
        record = teacher_record(clips, 3.0, inputs["prompts"], precision, 2 if causal else None)
        return run(work, config, record, inputs, precision=precision, network=transformer_config)

    def ode(work: Path, *, steps: int = 6, precision: Precision = Precision.FLOAT32, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "init": SCRATCH, "steps": steps, "batch_size": 4, "optimizer": optimizer("muon"), "ema_decay": 0.5,
            "checkpoint_every": 2, **changes,
        }  # fmt: skip
        inputs = {
            "pairs": world / "lmdb" / "pairs",
            "start": world / "teacher",
            **{name: world / name for name in ("prompts", "vae")},
        }
        record = student_record(clips, schedule, inputs["prompts"], precision, 2)
        return run(work, OdeConfig(**values), record, inputs, precision=precision)

    def dmd(work: Path, *, steps: int = 6, precision: Precision = Precision.FLOAT32, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "steps": steps, "batch_size": 4, "critic_updates_per_student_update": 2, "share_samples": False, "critic_only_steps": 1,
            "guidance_scale": 2.0, "student_optimizer": optimizer(), "critic_optimizer": optimizer(learning_rate=2e-2), "critic_lora_rank": None,
            "inputs": "data",
            "clean_frames_in_loss": True, "image_share": 0.0, "score_shift": 3.0, "score_timesteps": (20.0, 980.0), "ema_decay": 0.5, "checkpoint_every": 2, **changes,
        }  # fmt: skip
        names = ("prompts", "teacher", "student", "vae")
        inputs = {"latents": world / "lmdb" / "latents", **{name: world / name for name in names}}
        record = student_record(clips, schedule, inputs["prompts"], precision, 2)
        return run(work, DmdConfig(**values), record, inputs, precision=precision)

    def vae(work: Path, *, steps: int = 6, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "init": SCRATCH, "steps": steps, "image_steps": 3, "image_batch_size": 4, "batch_size": 2,
            "optimizer": optimizer("muon"), "kl_weight": 1e-5, "held_out_clips": 2, "checkpoint_every": 2, **changes,
        }  # fmt: skip
        return run(work, VaeConfig(**values), None, {"clips": world / "clips"}, network=vae_config)

    return {
        "teacher": Kind(teacher, TeacherStep, train_teacher),
        "causal_teacher": Kind(partial(teacher, causal=True), TeacherStep, train_teacher),
        "ode": Kind(ode, OdeStep, train_ode_init),
        "dmd": Kind(dmd, DmdStep, train_dmd),
        "dmd_sharing_samples": Kind(partial(dmd, **SHARED), DmdStep, train_dmd),
        "dmd_lora_critic": Kind(partial(dmd, **lora_critic(2)), DmdStep, train_dmd),
        # The student is updated first, so the shared network is called first as the teacher and then as the critic.
        "dmd_lora_critic_asked_second": Kind(partial(dmd, **lora_critic(2), critic_only_steps=0), DmdStep, train_dmd),
        "vae": Kind(vae, VaeStep, train_vae),
    }
