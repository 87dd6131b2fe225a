"""Stage sample: how many steps a model makes is said on the command line, and whether it rolls out by its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from causvid import params as params_file
from causvid.runtime import stage as stage_module
from stages import sample


class SilentTracker:
    """Stands for an MLflow run."""

    def log_results(self, *_: object) -> None: ...

    def log_metrics(self, *_: object) -> None: ...

    def log_artifact(self, *_: object) -> None: ...


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a project whose params are of the toy world."""

    @contextmanager
    def untracked(*_: object) -> Iterator[SilentTracker]:
        yield SilentTracker()

    monkeypatch.setattr(stage_module.tracking, "child_run", untracked)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("CAUSVID_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    for name in ("stages", "causvid"):
        (tmp_path / name).symlink_to(params_file.ROOT / name)
    values = YAML(typ="safe").load(params_file.PROFILES / "smoke.yaml")
    values["video"] = {"height": 32, "width": 32, "frames": 13, "fps": 8}
    values["schedule"] |= {"shift": 3.0, "solver_steps": 4, "denoising_timesteps": [1000, 750, 500]}
    values["sample"] |= {"videos": 2, "rollouts": 1, "rollout_clips": 2}
    YAML(typ="safe").dump(values, tmp_path / "params.yaml")
    return tmp_path


def run(world: Path, model: str, steps: str, name: str) -> Result:
    app = typer.Typer()
    app.command()(sample.main)
    paths = {"checkpoint": world / model, "vae": world / "vae", "prompts": world / "prompts"}
    options = {"model": name, "steps": steps, **paths, "out": f"samples/{name}", "metrics": f"{name}.json"}
    return CliRunner().invoke(app, [word for key, value in options.items() for word in (f"--{key}", str(value))])


def test_a_causal_model_is_sampled_in_few_steps_or_many(project: Path, world: Path) -> None:
    for steps, model in (("few", "student"), ("many", "causal_teacher")):
        done = run(world, model, steps, steps)
        assert done.exit_code == 0, done.output
        metrics = json.loads((project / f"{steps}.json").read_text())
        assert (metrics["videos"], metrics["rollouts"]) == (2, 1)
    for file in ("00001.mp4", "rollouts/00000.mp4"):
        few, many = ((project / "samples" / steps / file).read_bytes() for steps in ("few", "many"))
        assert few != many


def test_a_bidirectional_model_has_no_rollout(project: Path, world: Path) -> None:
    done = run(world, "teacher", "many", "teacher")
    assert done.exit_code == 0, done.output
    assert "rollouts" not in json.loads((project / "teacher.json").read_text())
