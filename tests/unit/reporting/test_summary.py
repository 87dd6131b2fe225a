"""Tests of the headline numbers."""

import json
from pathlib import Path

import pytest

from causvid.reporting import summary


def test_the_headline_numbers_are_those_of_the_student() -> None:
    judge, speed = {"velocity": 0.5, "motion": 1}, {"first_frame_s": 0.25, "fps": 100.0}
    results = {
        "evaluate/teacher": {"judge": {"velocity": 0.9}, "frechet_distance": 1.0},
        "evaluate/dmd": {"judge": judge, "frechet_distance": 2.0, "table4": {"temporal": 90.0, "frame": 80.0}},
        "measure_latency": {"teacher": {"first_frame_s": 1.0, "fps": 10.0}, "student": speed},
    }
    scores = {"velocity": 0.5, "motion": 1.0, "frechet": 2.0, "temporal": 90.0, "frame": 80.0}
    assert summary.values(results) == {**scores, "first_frame_s": 0.25, "fps": 100.0}
    assert summary.values(results, summary.SCORES) == scores


def test_numbers_that_were_not_measured_are_absent() -> None:
    assert summary.values({}) == {}
    assert summary.values({"evaluate/dmd": {"judge": {"velocity": None}}}) == {}


def test_the_command_prints_rounded_numbers_with_their_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary.main(tmp_path)
    assert json.loads(capsys.readouterr().out) == []
    (tmp_path / "measure_latency").mkdir()
    speed = {"student": {"first_frame_s": 0.13579, "fps": 84.96}}
    (tmp_path / "measure_latency" / "metrics.json").write_text(json.dumps(speed))
    summary.main(tmp_path)
    assert json.loads(capsys.readouterr().out) == [
        {"measure": "first frame, s", "value": 0.136},
        {"measure": "frames per second", "value": 85.0},
    ]
