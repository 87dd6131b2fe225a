"""Flow runs are named and tagged by params.yaml, and the form of a flow offers the stages of dvc.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows import labels
from flows.ablate import ablate
from flows.distill import distill
from flows.labels import run_name, run_tags, stages_of
from tests.unit.flows import tiny_pipeline


def named(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> str:
    monkeypatch.setattr(labels, "flow_run", SimpleNamespace(parameters=parameters))
    return run_name("all stages")()


def test_a_flow_run_is_named_by_profile_targets_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_pipeline.make(tmp_path / "project"))
    assert re.fullmatch(r"tiny · all stages · \d\d:\d\d", named(monkeypatch))
    assert re.fullmatch(r"tiny · all stages · \d\d:\d\d", named(monkeypatch, targets=[]))
    assert re.fullmatch(r"tiny · train@a, report · \d\d:\d\d", named(monkeypatch, targets=["train@a", "report"]))
    assert re.fullmatch(r"tiny · a, b, c and 2 more · \d\d:\d\d", named(monkeypatch, targets=list("abcde")))
    Path("params.yaml").write_text("profile: [")
    assert named(monkeypatch).startswith("no profile · all stages")


def test_a_flow_run_has_the_tags_profile_and_seed(tmp_path: Path) -> None:
    assert run_tags(tmp_path) == []
    (tmp_path / "params.yaml").write_text("profile: laptop\nseed: 3\nvideo: {fps: 8}\n")
    assert run_tags(tmp_path) == ["profile: laptop", "seed: 3"]


def test_the_stages_of_a_file_include_the_items_of_stages_that_have_several(tmp_path: Path) -> None:
    root = tiny_pipeline.make(tmp_path / "project")
    assert stages_of(root / "dvc.yaml") == ["download", "train", "train@a", "train@b", "report"]
    assert stages_of(root / "none.yaml") == []


def test_the_forms_offer_the_stages_of_the_two_pipelines() -> None:
    for flow, stage in ((distill, "evaluate@dmd"), (ablate, "table4")):
        targets = parameter_schema(flow).properties["targets"]
        assert (targets["type"], targets["default"]) == ("array", [])
        assert stage in targets["items"]["enum"]
