"""Provide a project in which stages run on the toy world without MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from causvid import params as params_file
from causvid.harness import stage as stage_module


class SilentTracker:
    """Replace the tracker of an MLflow run, and send nothing."""

    def log_results(self, *_: object) -> None: ...

    def log_metrics(self, *_: object) -> None: ...

    def log_artifact(self, *_: object) -> None: ...

    def log_model(self, *_: object) -> None: ...


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root folder of a project with params for the toy world."""

    @contextmanager
    def untracked(*_: object) -> Iterator[SilentTracker]:
        yield SilentTracker()

    monkeypatch.setattr(stage_module.tracking, "child_run", untracked)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("CAUSVID_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    for name in ("stages", "causvid"):
        (tmp_path / name).symlink_to(params_file.ROOT / name)
    (tmp_path / "data" / "inputs" / "scratch").mkdir(parents=True)
    values = YAML(typ="safe").load(params_file.PROFILES / "smoke.yaml")
    values["video"] = {"height": 32, "width": 32, "frames": 13, "fps": 8}
    values["schedule"] |= {"shift": 3.0, "solver_steps": 4, "denoising_timesteps": [1000, 750, 500]}
    values["sample"] |= {"videos": 2, "rollouts": 1, "rollout_clips": 2}
    YAML(typ="safe").dump(values, tmp_path / "params.yaml")
    return tmp_path
