"""Initial weights are an input of training: if the weights in the folder change, a new training starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from causvid import params as params_file
from causvid.harness import stage as stage_module
from causvid.wan.transformer.wan import build_transformer
from stages import train_teacher
from tests.unit.training.conftest import SilentTracker


@pytest.fixture
def project(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, transformer_config: dict[str, Any], schedule: Any
) -> Path:
    """Return the root folder of a project that trains the weights in init/ for two steps."""

    @contextmanager
    def untracked(*_: object) -> Iterator[SilentTracker]:
        yield SilentTracker()

    monkeypatch.setattr(stage_module.tracking, "child_run", untracked)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("stages", "causvid"):
        (tmp_path / name).symlink_to(params_file.ROOT / name)
    yaml = YAML()
    values = yaml.load(params_file.PROFILES / "smoke.yaml")
    values["model"]["transformer"] = transformer_config
    values["video"] |= {"frames": 13}
    values["train_teacher"] |= {"steps": 2, "init": {"folder": "init", "hub": None, "revision": None}}
    yaml.dump(values, tmp_path / "params.yaml")
    return tmp_path


def exported(project: Path, world: Path) -> dict[str, torch.Tensor]:
    train_teacher.main(
        latents=world / "lmdb" / "latents",
        prompts=world / "prompts",
        vae=world / "vae",
        out=project / "out",
        metrics=project / "metrics.json",
        curve=project / "curve.csv",
        params=project / "params.yaml",
        **({"init": project / "init"} if "init" in train_teacher.main.__annotations__ else {}),
    )
    return load_file(project / "out" / "diffusion_pytorch_model.safetensors")


def test_other_initial_weights_give_another_teacher(
    project: Path, world: Path, transformer_config: dict[str, Any]
) -> None:
    results = []
    for seed in (0, 1):
        build_transformer(transformer_config, seed).save_pretrained(project / "init")
        results.append(exported(project, world)["patch_embedding.weight"])
    assert not torch.equal(*results)
