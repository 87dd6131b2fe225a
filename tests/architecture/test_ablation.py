"""The ablation has every row and seed with the named inputs, and the main pipeline ignores the ablation."""

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
from causvid.reporting.ablation import ROWS

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = YAML(typ="safe").load(ROOT / "ablation" / "params.yaml")
UNDISTILLED = [row for row in ROWS if not ROWS[row].distilled]
RUNS = [*UNDISTILLED, *(f"{row}-{inputs}" for row in ROWS if ROWS[row].distilled for inputs in ("data", "rollout"))]
MANY_STEPS = ("many_step_bidirectional", "many_step_bidirectional_longer", "many_step_causal")
TEACHER, _, CAUSAL = MANY_STEPS
ODE_INIT = "few_step_ode_init_no_teacher"
CASES = [(run, seed) for run in RUNS for seed in SETTINGS["seeds"]]


@pytest.fixture(scope="module")
def graph() -> Iterator[Any]:
    """Return DVC's own graph of both pipelines. An edge points from a stage to a dependency of the stage."""
    with chdir(ROOT), Repo(str(ROOT)) as repo:
        yield repo.index.graph


@pytest.fixture(scope="module")
def stages(graph: Any) -> dict[str, Any]:
    """Return the stages of the ablation by name."""
    prefix = "ablation/dvc.yaml:"
    return {it.addressing.removeprefix(prefix): it for it in graph if it.addressing.startswith(prefix)}


def maker(stages: dict[str, Any], path: str) -> str:
    """Return the command of the stage that writes ``path``."""
    return next(it.cmd for it in stages.values() for out in it.outs if out.def_path == path)


def option(command: str, name: str) -> str:
    return re.search(rf" --{name} (\S+)", command)[1]  # type: ignore[index]


def test_no_stage_of_the_main_pipeline_depends_on_a_stage_of_the_ablation(graph: Any) -> None:
    """The report shows results of the ablation that are no DVC dependency, so 'dvc repro' does not run the ablation."""
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
    """An evaluation depends on samples, the samples on a model, the model on a teacher and an initial student.

    All these stages have the same seed and use the params file of the same row.
    """
    folder, steps = f"data/ablate/{run}/{seed}", "many" if run in MANY_STEPS else "few"
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
    if run == CAUSAL:
        assert " stages.train_causal_teacher " in training
    elif run in MANY_STEPS:
        assert " stages.train_teacher " in training
    elif run == ODE_INIT:
        assert " stages.train_ode_init " in training
    else:
        assert " stages.train_dmd " in training
        teacher = CAUSAL if row == "few_step_ode_init_causal_teacher" else TEACHER
        start = ODE_INIT if row.startswith("few_step_ode_init") else row
        assert option(training, "teacher") == f"data/ablate/{teacher}/{seed}/teacher"
        assert option(training, "student") == f"data/ablate/{start}/{seed}/student"
        beginning = maker(stages, option(training, "student"))
        causal = "_causal_start_" in row
        begin = f"data/ablate/{CAUSAL}/{seed}/teacher" if causal else "data/checkpoints/teacher"
        assert option(beginning, "start") == begin
        assert option(beginning, "params") == f"data/ablate/{start}/{seed}/params.yaml"


def test_inputs_of_a_command_are_deps_and_outputs_are_outs(stages: dict[str, Any]) -> None:
    """DVC knows every path that the command of a stage names."""
    for name, stage in stages.items():
        known = {it.def_path for it in (*stage.deps, *stage.outs)}
        named = {word for word in stage.cmd.split() if word.startswith(("data/", "ablation/evaluate"))}
        # training uses this path for preview videos only, and also starts without the path
        watched = {"data/checkpoints/vae"} if "stages.train_" in stage.cmd else set()
        assert named - watched <= known, name


def test_the_tables_are_no_outs_but_metrics_that_git_keeps(stages: dict[str, Any]) -> None:
    names = YAML(typ="safe").load(ROOT / "ablation" / "dvc.yaml")["metrics"]
    written = [option(stage.cmd, "out") for name, stage in stages.items() if name.startswith("table4@")]
    assert [f"../{path}" for path in written] == names
    assert not any(stage.outs for name, stage in stages.items() if name.startswith("table4@"))
