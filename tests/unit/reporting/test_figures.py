"""Figures draw every column and show the right frames, and equal data give equal bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causvid.reporting import figures
from causvid.reporting.figures import GAP, LABEL, TILE, TITLE, Panel, Strip


def video(frames: int, height: int, width: int) -> figures.Frames:
    """Return a video in which all pixels of frame k have the value k."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3)).copy()


def panel(x: str, lines: Mapping[str, Any]) -> Panel:
    """Return a panel with ``lines``."""
    return Panel(title="velocity", x=x, y="velocity", lines=lines)


def test_every_column_is_read_without_empty_cells(reports: Path) -> None:
    """Student updates are rarer than critic updates, so the column of the student has empty cells."""
    curve = figures.read_curve(reports / "train_dmd" / "curve.csv")
    assert curve == {"critic_loss": ([0, 1, 2, 3], [1.5, 1.0, 0.5, 0.4]), "student_loss": ([1, 3], [0.2, 0.1])}


def test_the_first_column_must_be_step(tmp_path: Path) -> None:
    """The error for a curve file with another first column names the file."""
    path = tmp_path / "curve.csv"
    for text in ("loss,step\n1,2\n", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"curve\.csv.*must be 'step'"):
            figures.read_curve(path)


def test_every_column_has_its_panel_and_panels_are_reproducible(tmp_path: Path) -> None:
    """A figure file contains no date, no version and no random ids."""
    curves = {
        "train_dmd": {"critic_loss": ([0.0, 1.0], [2.0, 1.0]), "student_loss": ([0.0], [3.0])},
        "train_vae": {"loss": ([], [])},
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawn = figures.draw_curves(curves, tmp_path / name)
    assert drawn == ["train_dmd-critic_loss.svg", "train_dmd-student_loss.svg"]
    for name in drawn:
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert "<dc:date>" not in text
        assert "prefers-color-scheme: dark" in text


def test_a_long_curve_shows_its_values_and_their_mean(tmp_path: Path) -> None:
    """The second line is the mean of consecutive values. It has no points where this mean is not defined."""
    steps = [float(step) for step in range(40)]
    lines = []
    for values in (steps, [*steps[:-1], 1000.0]):
        figures.draw_curves({"train_dmd": {"loss": (steps, values)}}, tmp_path)
        lines.append(re.findall(r'<path d="([^"]*)" clip-path', (tmp_path / "train_dmd-loss.svg").read_text()))
    assert [len(line.split("L")) for line in lines[0]] == [40, 40 - figures.SMOOTH + 1]
    assert lines[0] != lines[1]


def test_scores_along_a_video_are_reproducible_and_missing_points_are_omitted(tmp_path: Path) -> None:
    """There is one file per panel and one legend. The first point is not connected."""
    points = [{"mean": 0.5, "se": 0.1}, {"mean": 0.7, "se": None}, {"mean": 0.8, "se": 0.05}]
    several = {"student": points, "other": [{"mean": None, "se": None}, *points[1:]]}
    panels = [panel("block", several), panel("window", {"student": points})]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawn = figures.draw_along(panels, tmp_path / name, "along")
    assert drawn == ["along-1.svg", "along-2.svg", "along-legend.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in drawn)
    missing = {"student": [points[0], {"mean": None, "se": None}]}
    assert figures.draw_along([panel("block", {"student": points[:1]})], tmp_path, "alone") == ["alone-1.svg"]
    figures.draw_along([panel("block", missing)], tmp_path, "missing")
    assert (tmp_path / "alone-1.svg").read_text() == (tmp_path / "missing-1.svg").read_text()
    assert figures.draw_along([], tmp_path, "none") == []


def test_a_row_of_tiles_contains_the_first_and_the_last_frame() -> None:
    """A sheet shows the first, the middle and the last of nine frames.

    Small frames are enlarged by an integer factor.
    """
    row = figures.tile(video(9, 16, 32), 3)
    assert row.shape == (48, 3 * 96 + 2 * GAP, 4)
    assert [int(row[0, k * (96 + GAP), 0]) for k in range(3)] == [0, 4, 8]
    assert set(np.unique(row[:, 96 : 96 + GAP, 3])) == {0}  # gaps between frames are transparent


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 6), st.integers(16, 300), st.integers(2, 500), st.integers(1, 5))
def test_tiles_have_similar_widths_for_videos_of_any_size(frames: int, height: int, width: int, columns: int) -> None:
    """Frames of every width keep their order and colour."""
    row = figures.tile(video(frames, height, width), columns)
    each = (row.shape[1] + GAP) // columns - GAP
    assert TILE / 2 < each < 2 * TILE
    assert (np.diff(row[0, :: each + GAP, 0].astype(int)) >= 0).all()


def test_sheets_are_reproducible_and_keep_the_pixels_of_the_video(tmp_path: Path) -> None:
    """Captions may contain dollar signs, tags and any script."""
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


def test_a_sheet_without_videos_is_a_valid_image(tmp_path: Path) -> None:
    """A run without samples still has a report with figures."""
    figures.draw_sheet([], tmp_path / "none.png", columns=3)
    with Image.open(tmp_path / "none.png") as image:
        assert image.size[0] > 0


def test_a_label_has_the_same_colour_in_all_panels(tmp_path: Path) -> None:
    lines = {"a": ([0.0, 1.0], [2.0, 1.0]), "b": ([0.0, 1.0], [3.0, 2.5])}
    figures.draw_overlaid([panel("step", lines), panel("step", {"b": lines["b"]})], tmp_path, "lines")
    first, second, legend = ((tmp_path / f"lines-{name}.svg").read_text() for name in ("1", "2", "legend"))
    for text, colours in ((first, (0, 1)), (second, (1,)), (legend, (0, 1))):
        assert [index for index in range(len(figures.LINES)) if figures.LINES[index] in text] == list(colours)


def test_more_lines_than_colours_can_be_drawn(tmp_path: Path) -> None:
    lines = {str(k): ([0.0, 1.0], [float(k), 1.0]) for k in range(len(figures.LINES) + 1)}
    figures.draw_overlaid([panel("step", lines)], tmp_path, "many")
    assert (tmp_path / "many-legend.svg").is_file()


def test_bars_of_several_runs_are_grouped_by_name(tmp_path: Path) -> None:
    """The figure has an empty place for a missing score."""
    figures.draw_bars({"a": {"x": 0.5, "y": 0.7}, "b": {"y": 0.9}}, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count(f"fill: {figures.LINES[0]}") == 2 + 1  # two bars and one legend entry
    assert text.count(f"fill: {figures.LINES[1]}") == 1 + 1
