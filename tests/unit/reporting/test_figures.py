"""Figures: every column is drawn, frames come from where they should, the same input gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causvid.reporting import figures
from causvid.reporting.figures import GAP, LABEL, TILE, TITLE, Strip


def video(frames: int, height: int, width: int) -> figures.Frames:
    """Frame k is uniformly of value k."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3)).copy()


def test_every_column_is_read_and_gaps_are_skipped(reports: Path) -> None:
    """Student updates are rarer than critic updates: empty cells are no points."""
    curve = figures.read_curve(reports / "train_dmd" / "curve.csv")
    assert curve == {"critic_loss": ([0, 1, 2, 3], [1.5, 1.0, 0.5, 0.4]), "student_loss": ([1, 3], [0.2, 0.1])}


def test_a_curve_starts_with_its_step(tmp_path: Path) -> None:
    """Another first column is refused, with the file's name."""
    path = tmp_path / "curve.csv"
    for text in ("loss,step\n1,2\n", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"curve\.csv.*must be 'step'"):
            figures.read_curve(path)


def test_curves_are_the_same_bytes_twice(tmp_path: Path) -> None:
    """No date, no version, no random ids; one panel a column."""
    curves = {"train_dmd": {"critic_loss": ([0.0, 1.0], [2.0, 1.0]), "student_loss": ([0.0], [3.0])}, "train_vae": {}}
    for name in ("a.svg", "b.svg"):
        figures.draw_curves(curves, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert text.count('id="axes_') == 2
    assert "<dc:date>" not in text
    figures.draw_curves({}, tmp_path / "none.svg")
    assert 'id="axes_' not in (tmp_path / "none.svg").read_text()


def test_scores_along_a_video_are_the_same_bytes_twice_and_leave_gaps_open(tmp_path: Path) -> None:
    """A panel a title; the first place is not joined to the rest; a place without a value is not drawn."""
    points = [{"mean": 0.5, "se": 0.1}, {"mean": 0.7, "se": None}, {"mean": 0.8, "se": 0.05}]
    panels = {
        "velocity by block": {"student": points, "other": [{"mean": None, "se": None}, *points[1:]]},
        "velocity by window": {"student": points},
    }
    for name in ("a.svg", "b.svg"):
        figures.draw_along(panels, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert text.count('id="axes_') == 2
    alone = {"velocity by block": {"student": points[:1]}}
    figures.draw_along(alone, tmp_path / "alone.svg")
    figures.draw_along(
        {"velocity by block": {"student": [*points[:1], {"mean": None, "se": None}]}}, tmp_path / "c.svg"
    )
    assert (tmp_path / "alone.svg").read_text() == (tmp_path / "c.svg").read_text()


def test_tiles_run_from_the_first_to_the_last_frame() -> None:
    """Three of nine frames: the first, the middle, the last; small frames grow by a whole factor."""
    row = figures.tile(video(9, 16, 32), 3)
    assert row.shape == (48, 3 * 96 + 2 * GAP, 4)
    assert [int(row[0, k * (96 + GAP), 0]) for k in range(3)] == [0, 4, 8]
    assert set(np.unique(row[:, 96 : 96 + GAP, 3])) == {0}  # gaps are transparent


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 6), st.integers(16, 300), st.integers(2, 500), st.integers(1, 5))
def test_tiles_of_any_size_are_about_as_wide(frames: int, height: int, width: int, columns: int) -> None:
    """From two pixels across to large videos; frames keep their order and their colour."""
    row = figures.tile(video(frames, height, width), columns)
    each = (row.shape[1] + GAP) // columns - GAP
    assert TILE / 2 < each < 2 * TILE
    assert (np.diff(row[0, :: each + GAP, 0].astype(int)) >= 0).all()


def test_sheets_are_drawn_one_to_one_and_twice_the_same(tmp_path: Path) -> None:
    """Pixels of the sheet are pixels of the video; captions may hold dollars, tags and any script."""
    strips = [
        Strip(
            title="costs $5 & <b> 雪 " + "long " * 40, videos={"teacher": video(5, 32, 32), "student": video(3, 32, 32)}
        )
    ]
    for name in ("a.png", "b.png"):
        figures.draw_sheet(strips, tmp_path / name, columns=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened:
        image = np.asarray(opened)
    assert image.shape[:2] == (TITLE + 2 * (96 + GAP), LABEL + 3 * 96 + 2 * GAP)
    inside = image[TITLE + 40, LABEL + 40 :: 96 + GAP]
    assert inside[:, 0].tolist() == [0, 2, 4]
    assert set(inside[:, 3]) == {255}


def test_a_sheet_of_nothing_is_still_a_picture(tmp_path: Path) -> None:
    """A run without samples must not stop the report."""
    figures.draw_sheet([], tmp_path / "none.png", columns=3)
    with Image.open(tmp_path / "none.png") as image:
        assert image.size[0] > 0


def test_lines_of_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    """One panel a title, one colour a label in all of them, the same bytes twice."""
    lines = {"a": ([0.0, 1.0], [2.0, 1.0]), "b": ([0.0, 1.0], [3.0, 2.5])}
    panels = {"loss": lines, "gradient": {"b": lines["b"]}}
    for name in ("a.svg", "b.svg"):
        figures.draw_overlaid(panels, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert text.count('id="axes_') == 2
    first, second = (text.split('id="axes_')[panel] for panel in (1, 2))
    assert figures.LINES[0] in first
    assert figures.LINES[1] in first
    assert figures.LINES[1] in second


def test_bars_of_several_runs_share_a_place_for_each_name(tmp_path: Path) -> None:
    """A run without a score leaves its place empty."""
    figures.draw_bars({"a": {"x": 0.5, "y": 0.7}, "b": {"y": 0.9}}, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count(f"fill: {figures.LINES[0]}") == 2 + 1  # and the legend's
    assert text.count(f"fill: {figures.LINES[1]}") == 1 + 1
