"""Tests of the scoreboard and of the sentences about the student."""

from __future__ import annotations

from typing import Any

import pytest

from causvid.reporting import scoreboard


def scores(velocity: float, frechet: float, width: float = 0.02) -> dict[str, Any]:
    """Return the evaluation of a set of videos, with intervals of the given half width."""
    interval = [velocity - width, velocity + width]
    return {
        "judge": {"velocity": velocity, "motion": 1.0, "blocks": [{"velocity": velocity}, {"velocity": None}]},
        "table4": {"temporal": 100 * velocity, "frame": 80.0, "text": 90.0},
        "intervals": {"velocity": interval, "motion": [1.0, 1.0], "temporal": [100 * each for each in interval]},
        "frechet_distance": frechet,
        "frechet_interval": [frechet - 0.1, frechet + 0.1],
    }


RESULTS = {
    "evaluate/clips": scores(1.0, 0.1),
    "evaluate/teacher": scores(0.9, 1.0),
    "evaluate/ode_init": scores(0.8, 2.0),
    "evaluate/dmd": scores(0.85, 0.5),
}


def test_the_best_score_of_the_models_is_marked() -> None:
    """Real clips are not a model. For the Fréchet distance, lower is better."""
    rows = {row.label: row for row in scoreboard.scoreboard(RESULTS)}
    assert list(rows) == ["real clips", "VAE reconstructions", "teacher", "student, ODE init", "student, DMD"]
    assert [row.label for row in rows.values() if row.scores[0].is_best] == ["teacher"]
    assert [row.label for row in rows.values() if row.scores[2].is_best] == ["student, DMD"]
    assert rows["teacher"].scores[0].text == "0.900"
    assert rows["teacher"].scores[0].between == "0.880–0.920"
    assert rows["teacher"].scores[1].between == ""  # both ends are 1.000
    assert rows["VAE reconstructions"].scores[0].value is None
    assert rows["VAE reconstructions"].scores[0].text == "not measured"


def test_markdown_marks_the_best_scores_and_the_better_direction() -> None:
    head, _, *lines = scoreboard.markdown(scoreboard.scoreboard(RESULTS)).splitlines()
    assert head == "| videos | velocity ↑ | motion ↑ | Fréchet distance ↓ | temporal ↑ | frame ↑ | text ↑ |"
    assert lines[2].startswith("| teacher | **0.900** (0.880–0.920) | **1.000** | 1.00 (0.90–1.10) |")


def test_the_sentences_compare_the_intervals_of_student_and_teacher() -> None:
    """A score without an interval is compared as a number."""
    assert scoreboard.good(RESULTS) == (
        "The student is better than its teacher in Fréchet distance, and as good as its teacher within the intervals in "
        "motion, frame and text."
    )
    assert scoreboard.not_good(RESULTS) == (
        "The student is worse than its teacher in velocity (0.850, teacher 0.900) and temporal (85.0, teacher 90.0)."
    )
    wide = {**RESULTS, "evaluate/dmd": scores(0.89, 1.0, width=0.1)}
    assert scoreboard.not_good(wide) == "The student is worse than its teacher in none of these scores."
    assert "better" not in scoreboard.good(wide)


@pytest.mark.parametrize(
    ("values", "listed", "is_hardest"),
    [
        ([0.85, None], "0.85, not measured", False),
        ([0.5, 0.9, 1.0], "0.50, 0.90, 1.00", True),
        ([0.99, 1.0, 1.0], "0.99, 1.00, 1.00", False),
        ([0.9, 0.5], "0.90, 0.50", False),
        ([None, None], "not measured, not measured", False),
    ],
)
def test_the_blocks_of_the_student_are_listed(values: list[float | None], listed: str, is_hardest: bool) -> None:
    blocks = [{"velocity": value} for value in values]
    said = scoreboard.by_block({"evaluate/dmd": {"judge": {"blocks": blocks}}})
    assert f"are {listed}." in said
    assert ("The first block is the hardest" in said) == is_hardest


@pytest.mark.parametrize("name", ["evaluate/dmd", "evaluate/teacher"])
def test_without_scores_there_are_no_sentences(name: str) -> None:
    for results in ({}, {name: RESULTS[name]}):
        assert scoreboard.good(results) == scoreboard.not_good(results) == ""
    assert scoreboard.by_block({}) == ""
