"""The complete ablation runs at smoke size with two seeds, from an empty clone to Table 4 in the report."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from causvid.reporting.ablation import MEASURES, ROWS
from tests.pipeline.conftest import Clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_the_flow_writes_table_4_and_a_changed_param_reruns_only_its_stages(
    make_clone: Callable[[str], Clone],
) -> None:
    clone = make_clone("ablation")
    settings = clone.root / "ablation" / "params.yaml"
    text = settings.read_text()
    for key, value in (
        ("train_ode_init.steps: 300", "6"),
        ("train_ode_init.steps: 200", "6"),
        ("train_dmd.steps: 200", "6"),
        ("sample.videos: 256", "4"),
        ("sample.rollouts: 32", "2"),
        ("sample.rollout_clips: 6", "2"),
        ("train_causal_teacher.steps: 6400", "6"),
        ("train_teacher.steps: 6400", "6"),
    ):
        assert key in text
        text = text.replace(key, f"{key.split(':')[0]}: {value}")
    assert "\n- 2\n- 3\n- 4\n" in text
    text = text.replace("\n- 2\n- 3\n- 4\n", "\n")
    settings.write_text(text)
    prompts = clone.root / "data" / "inputs" / "two.txt"  # the diversity measure needs two videos per prompt
    prompts.write_text("".join((clone.root / "data/inputs/toy_world/scoring.txt").read_text().splitlines(True)[:2]))
    clone.set(encode_prompts__evaluation_prompts="data/inputs/two.txt")
    clone.run("python", "-m", "flows.ablate")
    for name, inputs in (("table4.json", "rollout"), ("table4_data.json", "data")):
        table = json.loads((clone.root / "reports" / "ablate" / name).read_text())
        assert (table["seeds"], table["prompts"], table["videos"]) == (2, 2, 4)
        assert (table["inputs"], table["profile"]) == (inputs, "smoke")
        assert {tuple(sorted(row)) for row in table["rows"].values()} == {tuple(sorted(MEASURES))}
        assert set(table["rows"]) == set(ROWS)
    assert not (clone.root / "data" / "checkpoints" / "dmd").exists(), "the student of the main pipeline was trained"
    assert "up to date" in clone.run("dvc", "--cd", "ablation", "status").stdout
    clone.run("dvc", "repro")
    assert "up to date" in clone.run("dvc", "--cd", "ablation", "status").stdout
    report = (clone.root / "reports" / "report.md").read_text()
    assert "not run" not in report
    assert "figure4.svg" in report
    clone.set(train_dmd__score_shift=2.0)
    listed = json.loads(clone.run("dvc", "--cd", "ablation", "status", "--json").stdout)
    assert {name.split("@")[0] for name in listed} == {"params", "params_dmd", "table4"}
    clone.run("dvc", "--cd", "ablation", "repro", "params_dmd", "params")
    listed = json.loads(clone.run("dvc", "--cd", "ablation", "status", "--json").stdout)
    assert {name.split("@")[0] for name in listed} == {"train_dmd", "train_dmd_other_start", "table4"}
