"""An option of the stage sample selects few or many steps, and only causal models generate rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from stages import sample


def run(world: Path, model: str, steps: str, name: str) -> Result:
    app = typer.Typer()
    app.command()(sample.main)
    paths = {"checkpoint": world / model, "vae": world / "vae", "prompts": world / "prompts"}
    options = {"model": name, "steps": steps, **paths, "out": f"samples/{name}", "metrics": f"{name}.json"}
    return CliRunner().invoke(app, [word for key, value in options.items() for word in (f"--{key}", str(value))])


def test_a_causal_model_can_be_sampled_with_few_or_many_steps(project: Path, world: Path) -> None:
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
