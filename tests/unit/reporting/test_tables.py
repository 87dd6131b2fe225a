"""Tables show the numbers of the metrics, and "not measured" for a missing metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causvid.reporting import tables
from causvid.reporting.ablation import ROWS
from causvid.reporting.published import read_published
from causvid.reporting.tables import NOT_MEASURED, Table


def cells(table: Table, row: str) -> dict[str, str]:
    """Return a map of column to cell for the first row whose first cell is ``row``."""
    return dict(zip(table.head, next(found for found in table.rows if found[0] == row), strict=True))


def column(table: Table, label: str) -> dict[str, str]:
    """Return the cells of the column with the header ``label``, keyed by the first cells of their rows."""
    return {row[0]: row[table.head.index(label)] for row in table.rows}


def test_quality_columns_have_the_numbers_of_their_evaluations(reports: Path) -> None:
    """The sets of videos are in order, each number is in its row, and null appears as "not measured"."""
    results = tables.read_results(reports)
    table = tables.quality(results)
    assert table.head == ("score", *tables.SETS.values())
    teacher = column(table, "teacher")
    assert teacher["number of videos"] == "128"
    assert (teacher["colour"], teacher["velocity"], teacher["flicker"]) == ("0.800", "0.550", "0.0312")
    assert (teacher["frame PSNR, dB"], teacher["Fréchet distance"]) == ("26.9", "3.25 (3.00 to 3.50)")
    assert teacher["size flicker"] == NOT_MEASURED
    assert "28.6" in table.note
    floor = column(tables.floors(results), "frozen")
    assert (floor["velocity"], floor["temporal"], floor["Fréchet distance"]) == ("0.125", "33.3", "187.00")
    assert tables.floors({}).rows == ()


def test_missing_results_are_shown_as_not_measured(published: Path) -> None:
    """Without results, every cell for a measured number is "not measured" or "not run"."""
    theirs = read_published(published)
    quality, speed = tables.quality({}), tables.latency({}, theirs)
    assert {cell for row in quality.rows for cell in row[1:]} == {NOT_MEASURED}
    assert {cell for row in speed.rows[:3] for cell in row[1:3]} == {NOT_MEASURED}
    beside = tables.beside_paper({}, theirs)
    assert {cell for row in beside.rows for cell in row[6:]} == {NOT_MEASURED}
    assert {cell for row in tables.table4(None, "rollout", theirs).rows for cell in row[1:5]} == {tables.NOT_RUN}
    for made in (tables.vbench, tables.vbench_skipped, tables.drift, tables.training, tables.data):
        assert made({}).rows == ()


def test_without_a_judge_the_other_scores_are_shown(evaluation: dict[str, Any]) -> None:
    """A null ``judge``, which captions outside the toy world cause, affects only the columns of the judge."""
    table = tables.quality({"evaluate/dmd": {**evaluation, "judge": None}})
    dmd = column(table, "student, DMD")
    assert dmd["number of videos"] == "128"
    assert (dmd["colour"], dmd["Fréchet distance"]) == (NOT_MEASURED, "3.25 (3.00 to 3.50)")


def test_the_speed_table_has_measured_and_published_ratios(reports: Path, published: Path) -> None:
    """The published ratio is computed from its two published rows, and only published rows have citations."""
    table = tables.latency(tables.read_results(reports), read_published(published))
    teacher, student, ratio, *theirs = table.rows
    assert teacher == ("teacher, passes over a clip: 40", "2.000", "16.50", "here, CPU, 2 threads")
    assert student[1:3] == ("0.125", "66.00")
    assert ratio[1:3] == ("16.0x", "4.0x")
    assert theirs[0][1:3] == ("219.20", "0.60")
    assert theirs[1][1:3] == ("1.30", "9.40")
    assert theirs[2][1:3] == (f"{219.2 / 1.3:.1f}x", f"{9.4 / 0.6:.1f}x")
    assert all("Table" in row[3] for row in theirs)
    assert tables.PUBLISHED in table.note


def test_rows_of_the_paper_have_the_scores_of_the_comparable_model(reports: Path, published: Path) -> None:
    """ODE init is compared with ODE init, and DMD is compared with DMD. Rows of the ablation are in another table."""
    table = tables.beside_paper(tables.read_results(reports), read_published(published))
    ode = cells(table, "4 steps, ODE init only")
    assert (ode["temporal"], ode["frame"], ode["text"], ode["ours"]) == ("92.9", "48.1", "25.3", "student, ODE init")
    assert (ode["velocity"], ode["frame PSNR, dB"]) == ("0.450", "26.9")
    assert not any("causal teacher" in row[0] for row in table.rows)
    assert tables.PUBLISHED in table.note


def test_table_4_has_measured_and_published_columns(ablated: Path, published: Path) -> None:
    """Every row has measured numbers and a cost, and the six rows of the paper also have published numbers."""
    found = tables.read_ablation(ablated)["rollout"]
    table = tables.table4(found, "rollout", read_published(published))
    assert [row[0] for row in table.rows] == [row.label for row in ROWS.values()]
    assert len({row[3:7] for row in table.rows}) == len(ROWS)
    ode = cells(table, ROWS["few_step_ode_init_no_teacher"].label)
    assert (ode["temporal"], ode["paper: frame"], ode["paper: text"]) == ("0.536 ± 0.011", "48.1", "25.3")
    assert (ode["updates"], ode["training, TFLOP"]) == ("4,000", "6.0")
    assert cells(table, ROWS["few_step_bidirectional"].label)["paper: temporal"] == "-"
    assert cells(table, ROWS["many_step_causal"].label)["paper: temporal"] == "92.4"
    assert sum(row[-1] != "-" for row in table.rows) == 6
    for words in (
        "3 seeds, each with 256 videos of 32 prompts",
        "profile laptop, commit 0123456 with changes",
        "their own rollouts",
        "causvid, Table 4".replace("causvid", "CausVid"),
    ):
        assert words in table.note


def test_every_claim_has_a_row(ablated: Path) -> None:
    found = tables.read_ablation(ablated)["rollout"]
    table = tables.claims(found, "rollout")
    assert len(table.rows) == len(found["claims"])
    lines = {(row[0], row[2]): (row[1], row[3], row[4]) for row in table.rows}
    assert lines["ode init only is worse", "frame"] == ("paper", "0.100 ± 0.010", "holds")
    ours = "many step causal is worse than bidirectional trained further"
    assert lines[ours, "frame"][0] == "this project"
    assert {row[4] for row in table.rows} == {"holds", "does not hold", "not resolved"}


@pytest.mark.parametrize(
    ("mean", "se", "cell"),
    [
        (0.51234, 0.0123, "0.512 ± 0.012"),
        (26.94, 0.31, "26.94 ± 0.31"),
        (1234.5, 25.0, "1,234 ± 25"),
        (0.5, 0.0, "0.500 ± 0"),
        (0.5, None, "0.500"),
        (None, None, NOT_MEASURED),
        (0.5, 1e-12, "0.500000 ± 0.000000"),
    ],
)
def test_decimals_of_a_mean_depend_on_its_error(mean: float | None, se: float | None, cell: str) -> None:
    assert tables.spread({"mean": mean, "se": se}) == cell


def test_vbench_scores_and_reasons(reports: Path) -> None:
    """Each set of videos has a column of scored dimensions.

    A row lists each reason for a skipped dimension with the affected sets.
    """
    found = tables.read_results(reports)
    found["evaluate/dmd"]["vbench"]["skipped"] = {"aesthetic_quality": "crashed"}
    assert cells(tables.vbench(found), "temporal_flickering")["student, DMD"] == "0.9712"
    rows = tables.vbench_skipped(found).rows
    assert ("aesthetic_quality", "student, DMD", "crashed") in rows
    assert (
        "aesthetic_quality",
        "real clips, VAE reconstructions, teacher, causal teacher, student, ODE init",
        "lacks clip.pt",
    ) in rows
    assert "0.1.5" in tables.vbench(found).note


def test_drift_shows_every_window_and_the_change(reports: Path) -> None:
    """The drift table has image statistics and scores of the judge."""
    table = tables.drift(tables.read_results(reports))
    assert table.head == ("model", "measure", "window 1", "window 2", "change")
    assert ("student, DMD", "brightness", "0.250", "0.500", "0.250") in table.rows
    assert ("student, DMD", "velocity", "0.700", "0.600", "-0.100") in table.rows


def test_training_and_data_list_every_number(reports: Path) -> None:
    """The table names the PSNR of the VAE, lists rejections by code, and omits text such as keys."""
    found = tables.read_results(reports)
    assert ("train_vae", "PSNR of held-out clips, dB", "28.61") in tables.training(found).rows
    assert ("generate_ode_pairs", "pairs", "896") in tables.training(found).rows
    assert ("resample", "rejected by code: too short", "2") in tables.data(found).rows
    assert not any(row[1] == "key" for row in (*tables.training(found).rows, *tables.data(found).rows))


def test_only_metrics_of_declared_stages_are_read(reports: Path) -> None:
    """Metrics of a stage on which the report does not depend cannot change the report."""
    (reports / "encode_prompts").mkdir()
    (reports / "encode_prompts" / "metrics.json").write_text(json.dumps({"prompts": 1}))
    assert "encode_prompts" not in tables.read_results(reports)
    assert {"train_vae", "evaluate/clips", "measure_latency"} <= set(tables.read_results(reports))


def test_a_published_number_needs_a_source(tmp_path: Path, published: Path) -> None:
    """The error names the unknown source of a published number."""
    path = tmp_path / "published.yaml"
    path.write_text(published.read_text().replace("source: causvid", "source: hearsay", 1))
    with pytest.raises(ValueError, match=r"hearsay.*known: causvid, self_forcing"):
        read_published(path)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=("Cc", "Zl", "Zp"))), min_size=2, max_size=2), max_size=4
    )
)
def test_markdown_keeps_its_columns(rows: list[list[str]]) -> None:
    """A row of Markdown has as many unescaped bars as the head, for all contents of the cells."""
    text = Table(title="t", head=("a", "b"), rows=tuple((a, b) for a, b in rows)).markdown()
    lines = text.split("\n")
    assert len(lines) == len(rows) + 2
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}


@settings(deadline=None)  # the machine may be busy
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9), st.integers(0, 5))
def test_numbers_are_rounded_to_the_given_decimals(value: float, decimals: int) -> None:
    """The number in a cell differs from the measured number by at most half a unit of the last digit."""
    assert abs(float(tables.number(value, decimals).replace(",", "")) - value) <= 0.5 * 10**-decimals * (1 + 1e-6)
