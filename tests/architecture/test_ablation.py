"""The ablation has every row and seed with the named inputs, and is a separate DVC project."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path
from typing import Any

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


def stages_of(folder: Path) -> dict[str, Any]:
    """Return the stages of a DVC project by name."""
    with chdir(folder), Repo(str(folder)) as repo:
        return {stage.addressing: stage for stage in repo.index.stages}


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    """Return the stages of the ablation by name."""
    return stages_of(ROOT / "ablation")


def inside(path: str) -> str:
    """Return a path that DVC reports as a path in the root."""
    return Path(path).relative_to(ROOT).as_posix()


def maker(stages: dict[str, Any], path: str) -> str:
    """Return the command of the stage that writes ``path``."""
    return next(it.cmd for it in stages.values() for out in it.outs if inside(out.fs_path) == path)


def option(command: str, name: str) -> str:
    return re.search(rf" --{name} (\S+)", command)[1]  # type: ignore[index]


def test_the_main_project_has_no_stage_of_the_ablation() -> None:
    """'dvc status', 'dvc metrics show' and 'dvc repro' in the root are about the main pipeline only."""
    assert len(stages_of(ROOT)) < 30
    assert all(Path(stage.path) == ROOT / "dvc.yaml" for stage in stages_of(ROOT).values())


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
    folder, steps = f"ablation/data/{run}/{seed}", "many" if run in MANY_STEPS else "few"
    scoring = maker(stages, f"ablation/evaluate/{run}/{seed}.json")
    sampling = maker(stages, option(scoring, "videos"))
    training = maker(stages, option(sampling, "checkpoint"))
    assert [option(it, "params") for it in (scoring, sampling, training)] == [f"{folder}/params.yaml"] * 3
    assert option(sampling, "steps") == steps
    asked = maker(stages, f"{folder}/params.yaml").split()
    row = next(it for it in ROWS if run in (it, f"{it}-data", f"{it}-rollout"))
    inputs = [] if run in UNDISTILLED else [f"train_dmd.inputs={run.rpartition('-')[2]}"]
    changes = ["ablation/params.yaml:all", f"ablation/params.yaml:rows.{row}", f"seed={seed}", *inputs]
    assert asked[asked.index("set") + 1 : asked.index("--out")] == ["params.yaml", *changes]
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
        assert option(training, "teacher") == f"ablation/data/{teacher}/{seed}/teacher"
        assert option(training, "student") == f"ablation/data/{start}/{seed}/student"
        beginning = maker(stages, option(training, "student"))
        causal = "_causal_start_" in row
        begin = f"ablation/data/{CAUSAL}/{seed}/teacher" if causal else "data/checkpoints/teacher"
        assert option(beginning, "start") == begin
        assert option(beginning, "params") == f"ablation/data/{start}/{seed}/params.yaml"


def test_inputs_of_a_command_are_deps_and_outputs_are_outs(stages: dict[str, Any]) -> None:
    """DVC knows every path that the command of a stage names."""
    for name, stage in stages.items():
        known = {inside(it.fs_path) for it in (*stage.deps, *stage.outs)}
        named = {
            word for word in stage.cmd.split() if word.startswith(("data/", "ablation/data/", "ablation/evaluate"))
        }
        # training uses this path for preview videos only, and also starts without the path
        watched = {"data/checkpoints/vae"} if "stages.train_" in stage.cmd else set()
        assert named - watched <= known, name


def test_the_tables_are_no_outs(stages: dict[str, Any]) -> None:
    """Git tracks the tables. As an out of the ablation, their folder could not be a dependency of the report."""
    tables = [stage for name, stage in stages.items() if name.startswith("table4@")]
    written = [option(stage.cmd, "out") for stage in tables]
    assert written == ["reports/ablate/table4.json", "reports/ablate/table4_data.json"]
    assert not any(stage.outs for stage in tables)


def test_code_is_a_dependency_through_links_in_the_project(stages: dict[str, Any]) -> None:
    """DVC ignores bytecode only inside of its project."""
    for name in ("causvid", "stages"):
        assert (ROOT / "ablation" / name).resolve() == ROOT / name
    code = [dep.def_path for stage in stages.values() for dep in stage.deps if "causvid" in dep.def_path]
    assert code
    assert all(path.startswith("causvid/") for path in code)
