"""The stage table4 computes the committed result from the evaluations of rows and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from causvid import params
from causvid.consistency import checked
from causvid.harness import tracking
from causvid.reporting.ablation import MEASURES, ROWS
from stages import table4


def run(inputs: str, out: str) -> tuple[int, str]:
    """Run the stage in the current folder, as ablation/dvc.yaml does."""
    app = typer.Typer()
    app.command()(table4.main)
    options = {
        "evaluations": "evaluate",
        "settings": "settings.yaml",
        "base": "params.yaml",
        "inputs": inputs,
        "out": out,
    }
    result = CliRunner().invoke(app, [part for name, value in options.items() for part in (f"--{name}", value)])
    return result.exit_code, str(result.exception)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with scores of two seeds for every row with inputs "data".

    The second seed is slightly better.
    """

    @contextmanager
    def no_tracking(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(log_results=lambda _: None, log_metrics=lambda _: None)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "child_run", no_tracking)
    params.use("smoke", tmp_path / "params.yaml")
    settings = (params.ROOT / "ablation" / "params.yaml").read_text()
    (tmp_path / "settings.yaml").write_text(settings.replace("\n- 0\n- 1\n- 2\n- 3\n- 4\n", "\n- 4\n- 7\n"))
    for k, row in enumerate(ROWS):
        folder = tmp_path / "evaluate" / (f"{row}-data" if ROWS[row].distilled else row)
        folder.mkdir(parents=True)
        for seed in (4, 7):
            score = dict.fromkeys(MEASURES, k + seed / 100)
            (folder / f"{seed}.json").write_text(
                json.dumps({"n": 8, "prompts": 4, "table4": score, "judge": None, "drift": None})
            )
    for code in ("stages", "causvid"):  # the key of the work folder is computed from the source code, too
        (tmp_path / code).symlink_to(params.ROOT / code)
    return tmp_path


def test_the_result_has_its_settings_and_means_over_seeds(project: Path) -> None:
    assert run("data", "reports/ablate/table4_data.json") == (0, "None")
    made = json.loads((project / "reports/ablate/table4_data.json").read_text())
    assert (made["profile"], made["inputs"], made["seeds"], made["videos"]) == ("smoke", "data", 2, 8)
    assert made["commit"] is None  # this project is not a git repository
    assert sorted(made["rows"]) == sorted(ROWS)
    assert made["rows"]["many_step_causal"]["temporal"] == pytest.approx({"mean": 2.055, "se": 0.015})
    assert len(made["key"]) == 16


def test_every_row_has_the_cost_that_the_planner_estimates(project: Path) -> None:
    run("data", "reports/ablate/table4_data.json")
    spent = json.loads((project / "reports/ablate/table4_data.json").read_text())["costs"]
    updates = {}
    for row, it in ROWS.items():
        changes = [f"{project / 'settings.yaml'}:{part}" for part in ("all", f"rows.{row}")]
        profile = checked(params.changed(project / "params.yaml", changes))
        steps = {
            "train_teacher": profile.train_teacher.steps,
            "train_causal_teacher": profile.train_causal_teacher.steps,
            "train_ode_init": profile.train_ode_init.steps,
            "train_dmd": profile.train_dmd.turns.student_updates(profile.train_dmd.steps),
        }
        updates[row] = sum(steps[stage] for stage in it.updates)
    assert {row: it["updates"] for row, it in spent.items()} == updates
    flops = {row: it["flops"] for row, it in spent.items()}
    assert flops["many_step_bidirectional"] == 0
    causal = flops["many_step_causal"]
    other_start = flops["few_step_no_ode_init_bidirectional_teacher"]
    assert flops["few_step_causal_start_no_ode_init"] == pytest.approx(other_start + causal)
    # A causal teacher of DMD must be trained, but its attention is cheaper.
    student = flops["few_step_ode_init_bidirectional_teacher"]
    assert causal < flops["few_step_ode_init_causal_teacher"] < student + causal
    assert flops["few_step_causal_start_ode_init"] > flops["few_step_causal_start_no_ode_init"]


def test_a_missing_score_is_one_sentence(project: Path) -> None:
    code, message = run("rollout", "reports/ablate/table4.json")
    assert code == 1
    assert "-rollout/4.json is missing; run 'make ablation'" in message
    assert not (project / "reports").exists()
