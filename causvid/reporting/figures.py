"""Draw curves and bars as SVG, and contact sheets as PNG. Equal data give files with equal bytes.

Frames are uint8 [F, H, W, 3]. Backgrounds are transparent, so that figures fit light and dark pages. Every panel is a
file of its own, so that a page can place as many panels in a row as fit.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Line = tuple[list[float], list[float]]  # steps, values
Curve = dict[str, Line]
Point = Mapping[str, float | None]  # {"mean": mean, "se": standard error of the mean, None for a single seed}

INK, INK_ON_DARK = "#5b6370", "#aab1bb"  # texts and axes; the contrast to a white or dark page is above 4.5 to 1
GREY = "#7f7f7f"  # texts of sheets, which are pixels and have the same colour on all pages
# These colours are distinguishable on light and on dark backgrounds.
LINES = ("#3b82c4", "#d9822b", "#3f9b57", "#a44fb0", "#c0504d", "#2aa5a0", "#b59a00", "#8c6d5a")
# The bytes of a figure must not depend on the date, the fonts of the machine, or random ids.
REPRODUCIBLE: dict[Any, Any] = {
    "svg.hashsalt": "causvid",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
}
PANEL = (3.4, 2.3)  # width and height of a panel in inches, 326 x 221 CSS pixels; 8.5 points are 11.3 CSS pixels
LEGEND = 44  # number of characters per line of a legend
SMOOTH = 9  # number of values in a mean of a training curve
TILE = 96  # approximate width of a frame on a sheet, in pixels
GAP, TITLE, LABEL = 3, 26, 128  # gap between frames, height of a title, width of a label, in pixels
DOTS = 100  # dots per inch; one dot of a sheet is one pixel
LATIN = 0x250  # the font contains the characters with lower codes


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The part of a sheet for one prompt: a title, and a mapping from labels to videos of the prompt."""

    title: str
    videos: Mapping[str, Frames]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A diagram: its title, the labels of its axes with units, and a mapping from labels to lines."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Any]


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


def draw_curves(curves: Mapping[str, Curve], folder: Path) -> list[str]:
    """Draw training curves as SVG, with one file for each stage and column. Return the names of the files.

    Each value is drawn in a pale colour, and the mean of ``SMOOTH`` consecutive values in the full colour.
    """
    names = []
    for stage, curve in curves.items():
        for column, line in curve.items():
            if line[1]:
                panel = Panel(title=stage, x="step", y=column.replace("_", " "), lines={column: line})
                names.append(_draw_panel(panel, folder / f"{stage}-{column}.svg", _draw_curve, [column]))
    return names


def draw_along(panels: Sequence[Panel], folder: Path, name: str) -> list[str]:
    """Draw scores along a video as SVG, with standard errors as error bars.

    The first point is not connected to later points, because the first block or window has no earlier frames to
    continue.

    Args:
        panels: Panels whose lines are sequences of points. Points are drawn at 1, 2, ... on the horizontal axis.
        folder: Folder of the files.
        name: Beginning of the names of the files.

    Returns:
        The names of the files: one file for each panel and, if there are several lines, a legend.
    """
    return _draw_panels(panels, folder, name, _draw_points)


def draw_overlaid(panels: Sequence[Panel], folder: Path, name: str) -> list[str]:
    """Draw lines over steps as SVG. Arguments and result are those of ``draw_along``; lines are of type ``Line``."""
    return _draw_panels(panels, folder, name, _draw_steps)


def draw_bars(values: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """Draw bars as SVG. ``values`` maps each label (a colour) and each name (a place on the axis) to a bar's length."""
    names = list(dict.fromkeys(name for bars in values.values() for name in bars))
    thick = 0.8 / len(values)
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(9.6, 0.8 + len(names) * (0.16 + 0.16 * len(values))), layout="constrained")
        axes = figure.add_subplot()
        for index, bars in enumerate(values.values()):
            places = [names.index(name) + (index - (len(values) - 1) / 2) * thick for name in bars]
            axes.barh(places, list(bars.values()), thick, color=LINES[index])
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.invert_yaxis()
        _style(axes, "")
        handles = [Patch(color=LINES[index]) for index in range(len(values))]
        figure.legend(handles, list(values), loc="outside lower center", frameon=False, labelcolor=INK)
        _save(figure, out)


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


def _draw_panels(panels: Sequence[Panel], folder: Path, name: str, draw: Callable[[Axes, Any, str], None]) -> list[str]:
    """Draw panels with one legend. ``draw`` adds a line to a panel. Equal labels have the same colour."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    names = [
        _draw_panel(panel, folder / f"{name}-{number}.svg", draw, labels)
        for number, panel in enumerate(panels, start=1)
    ]
    if len(labels) > 1:
        names.append(f"{name}-legend.svg")
        _draw_legend(labels, folder / names[-1])
    return names


def _draw_panel(panel: Panel, out: Path, draw: Callable[[Axes, Any, str], None], labels: Sequence[str]) -> str:
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=PANEL, layout="constrained")
        axes = figure.add_subplot()
        for label, line in panel.lines.items():
            draw(axes, line, LINES[labels.index(label) % len(LINES)])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(panel.x, color=INK)
        axes.set_ylabel(panel.y, color=INK)
        _style(axes, panel.title)
        _save(figure, out)
    return out.name


def _draw_legend(labels: Sequence[str], out: Path) -> None:
    wrapped = [textwrap.fill(label, LEGEND) for label in labels]
    lines = sum(label.count("\n") + 1 for label in wrapped)
    with matplotlib.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(PANEL[0], 0.1 + 0.19 * lines))
        handles = [Line2D([], [], color=LINES[k % len(LINES)], marker="o", markersize=3) for k in range(len(labels))]
        figure.legend(handles, wrapped, loc="center left", bbox_to_anchor=(0, 0.5), frameon=False, labelcolor=INK)
        _save(figure, out)


def _save(figure: Figure, out: Path) -> None:
    """Write ``figure`` as SVG. The style sheet changes the colour of texts and axes on dark pages."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    rules = " ".join(f'[style*="{kind}: {INK}"] {{ {kind}: {INK_ON_DARK} !important }}' for kind in ("fill", "stroke"))
    dark = f"@media (prefers-color-scheme: dark) {{ {rules} }}"
    out.write_text(text.getvalue().replace("</style>", f" {dark}</style>", 1), encoding="utf-8")


def _draw_curve(axes: Axes, line: Line, colour: str) -> None:
    steps, values = line
    if len(values) <= 2 * SMOOTH:
        axes.plot(steps, values, color=colour, linewidth=1.2, marker="" if len(steps) > 1 else "o")
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    means = np.convolve(values, np.full(SMOOTH, 1 / SMOOTH), mode="valid")
    middle = SMOOTH // 2
    axes.plot(steps[middle : middle + len(means)], means, color=colour, linewidth=1.5)


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
    axes.set_title(title, color=INK, fontsize=9, parse_math=False)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.patch.set_alpha(0)


def tile(frames: Frames, columns: int) -> Frames:
    """Return ``columns`` evenly spaced frames side by side, each about ``TILE`` pixels wide, as RGBA [h, w, 4]."""
    chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
    sized = resize(chosen, TILE)
    opaque = np.concatenate([sized, np.full((*sized.shape[:3], 1), 255, np.uint8)], axis=-1)
    padded = np.pad(opaque, ((0, 0), (0, 0), (0, GAP), (0, 0)))
    return np.ascontiguousarray(np.concatenate(list(padded), axis=1)[:, :-GAP])


def resize(frames: Frames, width: int) -> Frames:
    """Bring frames close to ``width``: enlarge by an integer factor, or reduce to the means of squares of pixels."""
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
