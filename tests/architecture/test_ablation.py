"""The ablation's pipeline: every row and seed is there, fed from where its name says, and the root's does not see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import networkx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from causvid import params
from causvid.reporting.ablation import ROWS, UNDISTILLED

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = YAML(typ="safe").load(ROOT / "ablation" / "params.yaml")
RUNS = [*UNDISTILLED, *(f"{row}-{inputs}" for row in ROWS if row not in UNDISTILLED for inputs in ("data", "rollout"))]
TEACHER, CAUSAL, ODE_INIT = UNDISTILLED
CASES = [(run, seed) for run in RUNS for seed in SETTINGS["seeds"]]


@pytest.fixture(scope="module")
def graph() -> Iterator[Any]:
    """DVC's own graph of both pipelines; edges point from a stage to what it depends on."""
    with chdir(ROOT), Repo(str(ROOT)) as repo:
        yield repo.index.graph


@pytest.fixture(scope="module")
def stages(graph: Any) -> dict[str, Any]:
    """The ablation's stages by name."""
    prefix = "ablation/dvc.yaml:"
    return {it.addressing.removeprefix(prefix): it for it in graph if it.addressing.startswith(prefix)}


def maker(stages: dict[str, Any], path: str) -> str:
    """The command that makes ``path``."""
    return next(it.cmd for it in stages.values() for out in it.outs if out.def_path == path)


def option(command: str, name: str) -> str:
    return re.search(rf" --{name} (\S+)", command)[1]  # type: ignore[index]


def test_the_roots_stages_depend_on_none_of_the_ablations(graph: Any) -> None:
    """Its report shows the results; what DVC would count as a dependency, a 'dvc repro' in the root would run."""
    for stage in graph:
        if not stage.addressing.startswith("ablation/"):
            above = {it.addressing for it in networkx.descendants(graph, stage)}
            assert not {name for name in above if name.startswith("ablation/")}, stage.addressing


def test_rows_are_those_of_the_result_and_at_least_three_seeds() -> None:
    assert set(SETTINGS["rows"]) == set(ROWS)
    assert len(set(SETTINGS["seeds"])) >= 3
    assert SETTINGS["all"]["sample.videos"] >= 256


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_a_rows_changes_are_keys_of_every_profile(tmp_path: Path, row: str, profile: str) -> None:
    sections = [f"{ROOT / 'ablation' / 'params.yaml'}:{name}" for name in ("all", f"rows.{row}")]
    varied = tmp_path / "params.yaml"
    params.vary(ROOT / "profiles" / f"{profile}.yaml", [*sections, "seed=7"], varied)
    made = params.read(varied)
    for key, value in ({"seed": 7} | SETTINGS["all"] | SETTINGS["rows"][row]).items():
        assert params.lookup(made, key, varied) == value


@pytest.mark.parametrize(("run", "seed"), CASES)
def test_every_row_and_seed_is_scored_from_its_own_model(stages: dict[str, Any], run: str, seed: int) -> None:
    """evaluate <- samples <- model <- teacher and start, each of the same seed, all with the row's own params file."""
    folder, steps = f"data/ablate/{run}/{seed}", "many" if run in (TEACHER, CAUSAL) else "few"
    scoring = maker(stages, f"ablation/evaluate/{run}/{seed}.json")
    sampling = maker(stages, option(scoring, "videos"))
    training = maker(stages, option(sampling, "checkpoint"))
    assert [option(it, "params") for it in (scoring, sampling, training)] == [f"{folder}/params.yaml"] * 3
    assert option(sampling, "steps") == steps
    asked = maker(stages, f"{folder}/params.yaml").split()
    row = next(it for it in ROWS if run in (it, f"{it}-data", f"{it}-rollout"))
    inputs = [] if run in UNDISTILLED else [f"train_dmd.inputs={run.rpartition('-')[2]}"]
    changes = ["ablation/params.yaml:all", f"ablation/params.yaml:rows.{row}", f"seed={seed}", *inputs]
    assert asked[5 : asked.index("--out")] == ["params.yaml", *changes]
    if run in (TEACHER, CAUSAL):
        assert " stages.train_teacher " in training
    elif run == ODE_INIT:
        assert " stages.train_ode_init " in training
    else:
        assert " stages.train_dmd " in training
        teacher = CAUSAL if row == "few_step_ode_init_causal_teacher" else TEACHER
        start = row if row in ("few_step_bidirectional", "few_step_no_ode_init_bidirectional_teacher") else ODE_INIT
        assert option(training, "teacher") == f"data/ablate/{teacher}/{seed}/teacher"
        assert option(training, "student") == f"data/ablate/{start}/{seed}/student"


def test_inputs_of_a_command_are_deps_and_outputs_are_outs(stages: dict[str, Any]) -> None:
    """Whatever path a stage's command names, DVC knows of."""
    for name, stage in stages.items():
        known = {it.def_path for it in (*stage.deps, *stage.outs)}
        named = {word for word in stage.cmd.split() if word.startswith(("data/", "ablation/evaluate"))}
        # Training only shows videos with it, and starts without one from latents made elsewhere.
        watched = {"data/checkpoints/vae"} if "stages.train_" in stage.cmd else set()
        assert named - watched <= known, name


def test_the_tables_are_no_outs_but_metrics_that_git_keeps(stages: dict[str, Any]) -> None:
    names = YAML(typ="safe").load(ROOT / "ablation" / "dvc.yaml")["metrics"]
    written = [option(stage.cmd, "out") for name, stage in stages.items() if name.startswith("table4@")]
    assert [f"../{path}" for path in written] == names
    assert not any(stage.outs for name, stage in stages.items() if name.startswith("table4@"))
