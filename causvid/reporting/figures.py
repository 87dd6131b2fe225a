"""Draw curves and bars as SVG, and contact sheets as PNG. Equal data give files with equal bytes.

Frames are uint8 [F, H, W, 3]. Backgrounds are transparent and axes are grey, so that figures are legible on light and
dark pages.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Line = tuple[list[float], list[float]]  # steps, values
Curve = dict[str, Line]
Point = Mapping[str, float | None]  # {"mean": mean, "se": standard error of the mean, None for a single seed}

GREY, BLUE = "#7f7f7f", "#3b82c4"
# These colours are distinguishable on light and on dark backgrounds.
LINES = (BLUE, "#d9822b", "#3f9b57", "#a44fb0", "#c0504d", "#2aa5a0", "#b59a00", "#8c6d5a")
# The bytes of a figure must not depend on the date, the fonts of the machine, or random ids.
REPRODUCIBLE: dict[Any, Any] = {
    "svg.hashsalt": "causvid",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
}
ACROSS = 3  # number of panels per row of a figure with a legend
LEGEND = 160  # number of characters per line of a legend
TILE = 96  # approximate width of a frame on a sheet, in pixels
GAP, TITLE, LABEL = 3, 26, 128  # gap between frames, height of a title, width of a label, in pixels
DOTS = 100  # dots per inch; one dot of a sheet is one pixel
LATIN = 0x250  # the font contains the characters with lower codes


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The part of a sheet for one prompt: a title, and a mapping from labels to videos of the prompt."""

    title: str
    videos: Mapping[str, Frames]


def read_curve(path: Path) -> Curve:
    """Read a CSV file whose first column is ``step``.

    Returns:
        A mapping from the name of each other column to its steps and values, without empty cells.

    Raises:
        ValueError: The first column is not ``step``. The message names the file.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if (reader.fieldnames or [""])[0] != "step":
            raise ValueError(
                f"{path}: the first column is {(reader.fieldnames or ['missing'])[0]!r}; it must be 'step'"
            )
        rows = list(reader)
    curve: Curve = {}
    for name in (reader.fieldnames or [])[1:]:
        filled = [row for row in rows if row[name]]
        curve[name] = [float(row["step"]) for row in filled], [float(row[name]) for row in filled]
    return curve


def draw_curves(curves: Mapping[str, Curve], out: Path) -> None:
    """Draw curves as SVG, with one row of panels per stage and one panel per column of the stage's curve."""
    drawn = {stage: curve for stage, curve in curves.items() if any(values for _, values in curve.values())}
    across = max((len(curve) for curve in drawn.values()), default=1)
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(2.6 * across, 1.9 * max(1, len(drawn))), layout="constrained")
        for row, (stage, curve) in enumerate(drawn.items()):
            for column, (name, (steps, values)) in enumerate(curve.items()):
                axes = figure.add_subplot(len(drawn), across, row * across + column + 1)
                axes.plot(steps, values, color=BLUE, linewidth=1, marker="" if len(steps) > 1 else "o")
                _style(axes, f"{stage}: {name.replace('_', ' ')}")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def draw_along(panels: Mapping[str, Mapping[str, Sequence[Point]]], out: Path) -> None:
    """Draw scores along a video as SVG, with standard errors as error bars.

    The first point is not connected to later points, because the first block or window has no earlier frames to
    continue.

    Args:
        panels: Maps the title of each panel and the label of each line to points. Points are drawn at 1, 2, ... on the
            horizontal axis.
        out: File to write.
    """
    _draw_panels(panels, out, _draw_points)


def draw_overlaid(panels: Mapping[str, Mapping[str, Line]], out: Path) -> None:
    """Draw lines over steps as SVG. ``panels`` maps the title of each panel and the label of each line to the line."""
    _draw_panels(panels, out, _draw_steps)


def draw_bars(values: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """Draw bars as SVG. ``values`` maps each label (a colour) and each name (a place on the axis) to a bar's length."""
    names = list(dict.fromkeys(name for bars in values.values() for name in bars))
    thick = 0.8 / len(values)
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(3.2 * ACROSS, 0.8 + len(names) * (0.16 + 0.16 * len(values))), layout="constrained")
        axes = figure.add_subplot()
        for index, bars in enumerate(values.values()):
            places = [names.index(name) + (index - (len(values) - 1) / 2) * thick for name in bars]
            axes.barh(places, list(bars.values()), thick, color=LINES[index])
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.invert_yaxis()
        _style(axes, "")
        _legend(figure, list(values), marker="s")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def draw_sheet(strips: Sequence[Strip], out: Path, *, columns: int) -> None:
    """Draw a contact sheet as PNG, with a title per strip and a row of ``columns`` evenly spaced frames per video."""
    tiled = [(strip, {label: tile(video, columns) for label, video in strip.videos.items()}) for strip in strips]
    width = LABEL + max((row.shape[1] for _, rows in tiled for row in rows.values()), default=TILE)
    heights = [TITLE + sum(row.shape[0] + GAP for row in rows.values()) for _, rows in tiled]
    height = max(1, sum(heights))
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS)
        top = height
        for strip, rows in tiled:
            figure.text(LABEL / width, (top - TITLE / 2) / height, _drawable(strip.title), **_text(left=True))
            top -= TITLE
            for label, row in rows.items():
                top -= row.shape[0]
                figure.text((LABEL - 8) / width, (top + row.shape[0] / 2) / height, label, **_text(left=False))
                axes = figure.add_axes((LABEL / width, top / height, row.shape[1] / width, row.shape[0] / height))
                axes.imshow(row, interpolation="nearest", aspect="auto")
                axes.set_axis_off()
                top -= GAP
        figure.savefig(out, format="png", dpi=DOTS, transparent=True, metadata={"Software": None})


def _draw_panels(panels: Mapping[str, Mapping[str, Any]], out: Path, draw: Callable[[Axes, Any, str], None]) -> None:
    """Draw a grid of panels with one legend. ``draw`` adds a line to a panel. Equal labels have the same colour."""
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    rows = math.ceil(len(panels) / ACROSS)
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(3.2 * ACROSS, 2.1 * rows + 0.3), layout="constrained")
        for index, (title, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, ACROSS, index + 1)
            for label, line in lines.items():
                draw(axes, line, LINES[labels.index(label)])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _style(axes, title)
        _legend(figure, labels, marker="o")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _legend(figure: Figure, labels: Sequence[str], *, marker: str) -> None:
    handles = [Line2D([], [], color=LINES[index], marker=marker, markersize=3) for index in range(len(labels))]
    across = max(1, min(len(labels), LEGEND // (max(map(len, labels), default=1) + 8)))  # 8: marker and gaps
    figure.legend(handles, labels, loc="outside lower center", ncols=across, frameon=False, labelcolor=GREY)


def _draw_steps(axes: Axes, line: Line, colour: str) -> None:
    steps, values = line
    axes.plot(steps, values, color=colour, linewidth=1, marker="o" if len(steps) < 10 else "", markersize=3)


def _draw_points(axes: Axes, points: Sequence[Point], colour: str) -> None:
    known = [(place, point["mean"], point["se"] or 0.0) for place, point in enumerate(points, start=1)]
    known = [point for point in known if point[1] is not None]
    for part in ([point for point in known if point[0] == 1], [point for point in known if point[0] > 1]):
        if part:
            places, means, errors = zip(*part, strict=True)
            axes.errorbar(places, means, errors, color=colour, linewidth=1, marker="o", markersize=3)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, color=GREY, fontsize=9, parse_math=False)
    axes.tick_params(colors=GREY, labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.patch.set_alpha(0)


def tile(frames: Frames, columns: int) -> Frames:
    """Return ``columns`` evenly spaced frames side by side, each about ``TILE`` pixels wide, as RGBA [h, w, 4]."""
    chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
    sized = _resize(chosen, TILE)
    opaque = np.concatenate([sized, np.full((*sized.shape[:3], 1), 255, np.uint8)], axis=-1)
    padded = np.pad(opaque, ((0, 0), (0, 0), (0, GAP), (0, 0)))
    return np.ascontiguousarray(np.concatenate(list(padded), axis=1)[:, :-GAP])


def _resize(frames: Frames, width: int) -> Frames:
    """Enlarge small frames by an integer factor; reduce large frames to the means of squares of pixels."""
    across = frames.shape[2]
    if across <= width:
        times = width // across
        return frames.repeat(times, axis=1).repeat(times, axis=2)
    by = across // width
    count, height, wide = frames.shape[0], frames.shape[1] // by, across // by
    blocks = frames[:, : height * by, : wide * by].reshape(count, height, by, wide, by, 3)
    means: Frames = blocks.mean(axis=(2, 4)).round().astype(np.uint8)
    return means


def _drawable(text: str) -> str:
    """Shorten ``text``, and replace characters that are not in the font. The HTML page shows the complete text."""
    shown = "".join(character if ord(character) < LATIN else "?" for character in text)
    return shown if len(shown) <= 110 else f"{shown[:109]}…"


def _text(*, left: bool) -> dict[str, Any]:
    # A dollar sign in a caption must not start a formula.
    side = "left" if left else "right"
    return {"color": GREY, "fontsize": 9, "ha": side, "va": "center", "parse_math": False}
