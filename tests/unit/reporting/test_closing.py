"""The last block of a run compares the six scores of the student with the previous run of the same profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causvid.harness import lines
from causvid.reporting import closing


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAUSVID_WORK_DIR", raising=False)
    monkeypatch.setattr(lines.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    (tmp_path / "reports" / "evaluate").mkdir(parents=True)
    (tmp_path / "reports" / "index.html").touch()
    return tmp_path


def scores(velocity: float) -> None:
    found = {"judge": {"velocity": velocity, "motion": 1.0}, "frechet_distance": 0.96, "table4": {"temporal": 91.23}}
    Path("reports/evaluate/dmd.json").write_text(json.dumps(found))


def block(profile: str = "laptop", seconds: float = 238.4) -> list[str]:
    return closing.block(Path("reports"), Path("reports/index.html"), profile, seconds).splitlines()


def row(found: list[str], label: str) -> list[str]:
    (line,) = (line for line in found if line.strip().startswith(label))
    return line.split()


def test_the_first_run_has_no_previous_scores() -> None:
    scores(0.9)
    found = block()
    assert found[1] == "laptop: 3 min 58 s"
    assert row(found, "velocity") == ["velocity", "0.900", "-"]
    assert row(found, "Fréchet distance") == ["Fréchet", "distance", "0.96", "-", "lower", "is", "better"]
    assert row(found, "text") == ["text", "-", "-"]
    assert found[-1] == "report: reports/index.html"


def test_scores_are_beside_those_of_the_previous_run_with_other_scores() -> None:
    scores(0.9)
    block()
    block()  # nothing has changed
    scores(0.8)
    assert row(block(), "velocity") == ["velocity", "0.800", "0.900"]
    assert row(block(), "velocity") == ["velocity", "0.800", "0.900"]
    scores(0.7)
    assert row(block(), "velocity") == ["velocity", "0.700", "0.800"]


def test_profiles_are_not_compared() -> None:
    scores(0.9)
    block("smoke")
    scores(0.8)
    assert row(block("laptop"), "velocity") == ["velocity", "0.800", "-"]


def test_before_the_first_report_the_block_has_no_scores() -> None:
    Path("reports/index.html").unlink()
    found = block()
    assert row(found, "velocity") == ["velocity", "-", "-"]
    assert found[-1] == "no report yet"
    assert not Path(".work").exists()


def test_a_damaged_history_is_replaced() -> None:
    Path(".work").mkdir()
    Path(".work/runs.json").write_text("{")
    scores(0.9)
    assert row(block(), "velocity") == ["velocity", "0.900", "-"]
    scores(0.8)
    assert row(block(), "velocity") == ["velocity", "0.800", "0.900"]


@pytest.mark.parametrize("variable", ["CAUSVID_COMMAND", "CAUSVID_PARENT_RUN_ID"])
def test_a_command_or_a_flow_prints_the_block_itself(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CAUSVID_COMMAND", "CAUSVID_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    scores(0.9)
    monkeypatch.setenv("DVC_STAGE", "report")
    closing.say(Path("reports"), Path("reports/index.html"), "laptop")
    assert "report: reports/index.html" in capsys.readouterr().out
    monkeypatch.setenv(variable, "1")
    closing.say(Path("reports"), Path("reports/index.html"), "laptop")
    assert capsys.readouterr().out == ""
