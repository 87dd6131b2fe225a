"""Training jobs on the toy world, and a tracker that keeps nothing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from causvid import params
from causvid.data import manifest
from causvid.diffusion.schedule import ScheduleConfig
from causvid.models.pretrained import Init
from causvid.runtime.device import Precision
from causvid.runtime.tracking import Watch
from causvid.training.checkpoint import Stateful
from causvid.training.dmd_step import DmdConfig, DmdJob, DmdStep, train_dmd
from causvid.training.ode_step import OdeConfig, OdeJob, OdeStep, train_ode_init
from causvid.training.optimizers import OptimizerConfig
from causvid.training.recording import Clips
from causvid.training.speed import Work
from causvid.training.teacher_step import TeacherConfig, TeacherJob, TeacherStep, train_teacher
from causvid.training.trainer import CURVE
from causvid.training.vae_step import VaeConfig, VaeJob, VaeStep, train_vae
from tests.conftest import ONE_WORKER, TEACHER, VIDEO

WATCH = Watch(samples_every=0, samples=2, keep_checkpoints_every=None)

SCRATCH = Init(folder=Path("no such folder"), hub=None, revision=None)


class SilentTracker:
    """Stands for an MLflow run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Nothing."""

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Nobody listens here."""

    def log_artifact(self, path: Path, folder: str) -> None:
        """Nothing."""

    def log_model(self, name: str, path: Path, key: str) -> None:
        """Nothing."""


class TrainingStep(Protocol):
    """What every step object is."""

    def parts(self) -> dict[str, Stateful]: ...

    def __call__(self, step: int) -> dict[str, torch.Tensor]: ...

    def work(self, step: int) -> Work: ...


@dataclass(frozen=True)
class Kind:
    """One way to train: its job (by seed, steps and further changes of its config), its step object, its whole run."""

    job: Callable[..., Any]
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


def laptop_optimizers(name: str) -> dict[str, OptimizerConfig]:
    """Those that the laptop profile trains the kind ``name`` with."""
    section = {"teacher": "train_teacher", "ode": "train_ode_init", "dmd": "train_dmd"}[name]
    values = params.read(params.PROFILES / "laptop.yaml")[section]
    return {
        key: params.build(OptimizerConfig, value, name=key)
        for key, value in values.items()
        if key.endswith("optimizer")
    }


def curve(folder: Path) -> list[dict[str, float]]:
    """A row a step."""
    with (folder / CURVE).open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_losses(one: Path, other: Path, *, steps: int) -> None:
    """Every loss of ``steps`` steps, to a part in 100,000."""
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
    """Teacher (bidirectional and causal), ODE, DMD (four ways) and VAE training on the toy world; every part of each one's state matters within six steps."""
    common: dict[str, Any] = {
        "tracker": SilentTracker(),
        "seed": 0,
        "made_from": {"params": "0"},
        "watch": WATCH,
        "compute": ONE_WORKER,
    }
    network: dict[str, Any] = {
        "precision": Precision.FLOAT32,
        "prompts": world / "prompts",
        "clips": Clips(video=VIDEO, latents=TEACHER.latents),
    }

    def teacher(work: Path, *, steps: int = 6, precision: Precision = Precision.FLOAT32, **changes: Any) -> TeacherJob:
        config: dict[str, Any] = {
            "init": SCRATCH, "causal": False, "steps": steps, "batch_size": 4, "optimizer": optimizer("muon"),
            "prompt_dropout": 0.5, "ema_decay": 0.5, "checkpoint_every": 2, **changes,
        }  # fmt: skip
        return TeacherJob(
            config=TeacherConfig(**config), transformer=transformer_config, frames_per_block=2, shift=3.0,
            work=work, latents=world / "lmdb" / "latents", **{**common, **network, "precision": precision},
        )  # fmt: skip

    def ode(work: Path, *, steps: int = 6, precision: Precision = Precision.FLOAT32, **changes: Any) -> OdeJob:
        config: dict[str, Any] = {
            "init": SCRATCH, "steps": steps, "batch_size": 4, "optimizer": optimizer("muon"), "ema_decay": 0.5,
            "checkpoint_every": 2, **changes,
        }  # fmt: skip
        return OdeJob(
            config=OdeConfig(**config), schedule=schedule, frames_per_block=2, work=work,
            pairs=world / "lmdb" / "pairs", teacher=world / "teacher", vae=world / "vae", **{**common, **network, "precision": precision},
        )  # fmt: skip

    def dmd(work: Path, *, steps: int = 6, precision: Precision = Precision.FLOAT32, **changes: Any) -> DmdJob:
        config: dict[str, Any] = {
            "steps": steps, "batch_size": 4, "critic_updates_per_student_update": 2, "share_samples": False, "critic_only_steps": 1,
            "guidance_scale": 2.0, "student_optimizer": optimizer(), "critic_optimizer": optimizer(learning_rate=2e-2), "critic_lora_rank": None,
            "inputs": "data",
            "clean_frames_in_loss": True, "image_share": 0.0, "score_shift": 3.0, "score_timesteps": (20.0, 980.0), "ema_decay": 0.5, "checkpoint_every": 2, **changes,
        }  # fmt: skip
        return DmdJob(
            config=DmdConfig(**config), schedule=schedule, work=work, latents=world / "lmdb" / "latents",
            teacher=world / "teacher", vae=world / "vae", student=world / "student", **{**common, **network, "precision": precision},
        )  # fmt: skip

    def vae(work: Path, *, steps: int = 6, **changes: Any) -> VaeJob:
        config: dict[str, Any] = {
            "init": SCRATCH, "steps": steps, "image_steps": 3, "image_batch_size": 4, "batch_size": 2,
            "optimizer": optimizer("muon"), "kl_weight": 1e-5, "held_out_clips": 2, "checkpoint_every": 2, **changes,
        }  # fmt: skip
        clips = tuple(world / "clips" / row["path"] for row in manifest.read_manifest(world / "clips"))[:-2]
        return VaeJob(config=VaeConfig(**config), vae=vae_config, clips=clips, work=work, **common)

    return {
        "teacher": Kind(teacher, TeacherStep, train_teacher),
        "causal_teacher": Kind(partial(teacher, causal=True), TeacherStep, train_teacher),
        "ode": Kind(ode, OdeStep, train_ode_init),
        "dmd": Kind(dmd, DmdStep, train_dmd),
        "dmd_sharing_samples": Kind(partial(dmd, share_samples=True), DmdStep, train_dmd),
        "dmd_lora_critic": Kind(partial(dmd, critic_lora_rank=2), DmdStep, train_dmd),
        # The first pass of the network is the teacher's, for the student's update.
        "dmd_lora_critic_asked_second": Kind(partial(dmd, critic_lora_rank=2, critic_only_steps=0), DmdStep, train_dmd),
        "vae": Kind(vae, VaeStep, train_vae),
    }
