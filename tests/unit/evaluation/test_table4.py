from __future__ import annotations

from typing import Any

import pytest

from causvid.evaluation import table4

PERFECT: dict[str, Any] = {
    "colour": 1.0, "background": 1.0, "shape": 1.0, "motion": 1.0, "velocity": 1.0, "seen": 1.0, "area_cv": 0.0,
    "frame_psnr": 30.0, "temporal_psnr": 30.0, "start_spread": 1.0, "sample_spread": 1.0,
}  # fmt: skip
NOTHING: dict[str, Any] = {**dict.fromkeys(PERFECT, 0.0), "area_cv": None}


def test_the_ends_of_the_scale() -> None:
    assert table4.columns(PERFECT) == dict.fromkeys(("temporal", "frame", "text", "diversity"), 100)
    assert table4.columns(NOTHING) == dict.fromkeys(("temporal", "frame", "text", "diversity"), 0)


def test_columns_in_closed_form() -> None:
    middle = (table4.FLOOR_DB + table4.CEILING_DB) / 2
    judged = {**PERFECT, "velocity": 0.8, "area_cv": 0.1, "temporal_psnr": middle}
    assert table4.temporal(judged) == pytest.approx(100 * (0.8 + 0.9 + 0.5) / 3)
    assert table4.frame({**PERFECT, "seen": 0.7, "frame_psnr": middle}) == pytest.approx(100 * (0.7 + 0.5) / 2)
    assert table4.text({**PERFECT, "shape": 0.6, "motion": 0.8}) == pytest.approx(85)
    assert table4.diversity({**PERFECT, "start_spread": 0.5, "sample_spread": 0.7}) == pytest.approx(60)


@pytest.mark.parametrize(
    ("column", "measures"),
    [
        ("temporal", ("velocity", "area_cv", "temporal_psnr")),
        ("frame", ("seen", "frame_psnr")),
        ("text", ("colour", "background", "shape", "motion")),
        ("diversity", ("start_spread", "sample_spread")),
    ],
)
def test_a_column_weights_its_measures_equally_and_ignores_others(column: str, measures: tuple[str, ...]) -> None:
    for name in PERFECT:
        found = table4.columns({**PERFECT, name: NOTHING[name]})
        lost = {"text": 25.0, "temporal": 100 / 3, "frame": 50.0, "diversity": 50.0}[column] if name in measures else 0
        assert found[column] == pytest.approx(100 - lost), name


def test_size_flicker_is_clipped_to_that_of_a_missing_object() -> None:
    assert table4.temporal({**PERFECT, "area_cv": 1.7}) == table4.temporal({**PERFECT, "area_cv": None})


def test_spreads_above_one_are_clipped() -> None:
    assert table4.diversity({**PERFECT, "start_spread": 0.0, "sample_spread": 2.5}) == 50


def test_diversity_that_was_not_measured_is_none() -> None:
    assert table4.diversity({**PERFECT, "start_spread": None, "sample_spread": None}) is None


def test_decibels_are_linear_between_the_constants() -> None:
    low, high = table4.FLOOR_DB, table4.CEILING_DB
    found = [table4.quality_of_db(x) for x in (low - 9, low, low + (high - low) / 4, high, high + 9)]
    assert found == pytest.approx([0, 0, 0.25, 1, 1])
