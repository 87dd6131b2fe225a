"""Write the report: an HTML page, a short Markdown file for git, and the figures.

The HTML page contains videos and figures in base64, so that the page opens from disk without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from causvid.data.videos.video_reader import read_frames
from causvid.reporting import figures, scoreboard, summary, tables
from causvid.reporting.content import Content, Show
from causvid.reporting.race_picture import draw_race
from causvid.reporting.templates import render

TEMPLATE = Path(__file__).with_name("page.html.jinja")
RACE, SHEET = "race.webp", "samples.png"
FIGURE4_NOTE = (
    "Quality along a video: by block of a clip, and by window of a long rollout. A window is as long as a training "
    "clip. Error bars are standard errors over seeds. The first point is not connected to the others, because the "
    "first block or window has no earlier frames to continue. Students of DMD are trained on their own rollouts unless "
    "the legend says otherwise."
)
SHOWN_WIDTH = 176  # approximate width in pixels of a small video on the page; larger videos fill their column
SHEET_PROMPTS, SHEET_FRAMES = 4, 9


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """File names of the figures: the race, sheets of frames, panels of figure 4, and training curves."""

    race: Sequence[str]
    sheets: Sequence[str]
    figure4: Sequence[str]
    curves: Sequence[str]

    @property
    def names(self) -> tuple[str, ...]:
        """All file names."""
        return (*self.race, *self.sheets, *self.figure4, *self.curves)


def draw(content: Content, folder: Path) -> Drawn:
    """Write the figures of the report to ``folder``: the race, sheets of frames, figure 4, and training curves."""
    folder.mkdir(parents=True)
    sheets = {SHEET: content.samples, "rollouts.png": content.rollouts}
    for name, shows in sheets.items():
        if shows:
            figures.draw_sheet(_strips(shows), folder / name, columns=SHEET_FRAMES)
    race = content.race
    if race:
        draw_race(race, folder / RACE)
    return Drawn(
        race=[RACE] if race else [],
        sheets=[name for name, shows in sheets.items() if shows],
        figure4=figures.draw_along(content.along(), folder, "figure4"),
        curves=figures.draw_curves(content.curves, folder),
    )


def html(content: Content, folder: Path, drawn: Drawn) -> str:
    """Return the HTML page with the figures that ``draw`` wrote to ``folder``."""
    times = max(1, SHOWN_WIDTH // content.video.width)
    return render(
        TEMPLATE,
        content=content,
        folder=folder,
        drawn=drawn,
        figure4_note=FIGURE4_NOTE,
        scoreboard=scoreboard.scoreboard(content.results),
        board_note=scoreboard.NOTE,
        columns=[(each.label, scoreboard.arrow(each)) for each in summary.SCORES],
        not_run=tables.NOT_RUN,
        not_measured=tables.NOT_MEASURED,
        width=content.video.width * times,
        height=content.video.height * times,
    )


def markdown(content: Content, folder: str, drawn: Drawn) -> str:
    """Return the short report for git.

    Args:
        content: Content of the report.
        folder: Folder of the figures, relative to the report.
        drawn: The figures.
    """

    def images(names: Sequence[str]) -> str:
        return "\n".join(f"![{name.rpartition('.')[0].replace('_', ' ')}]({folder}/{name})" for name in names)

    board = scoreboard.markdown(scoreboard.scoreboard(content.results))
    parts = [f"# Report: profile {content.profile}", content.facts, content.lead, content.busy, images(drawn.race)]
    parts += ["## Scoreboard", board, scoreboard.NOTE, *(f"{name}: {said}" for name, said in content.verdict.items())]
    parts += [images(drawn.sheets)]
    for section in content.sections():
        for table in (*section.tables, *section.folded):
            parts += [f"## {table.title}", table.markdown(), table.note]
    figure4 = f"{images(drawn.figure4)}\n\n{FIGURE4_NOTE}" if drawn.figure4 else f"{tables.NOT_RUN.capitalize()}."
    parts += [
        "## Figure 4",
        figure4,
        "## Training curves",
        images(drawn.curves) or f"{tables.NOT_MEASURED.capitalize()}.",
    ]
    sources = (f"- {source.citation}. <{source.url}>" for source in content.published.sources.values())
    return "\n\n".join(part for part in [*parts, "## Sources", "\n".join(sources)] if part) + "\n"


def _strips(shows: tuple[Show, ...]) -> list[figures.Strip]:
    return [
        figures.Strip(
            title=show.caption,
            videos={label: read_frames(path) for label, path in show.videos.items() if path is not None},
        )
        for show in shows[:SHEET_PROMPTS]
    ]
