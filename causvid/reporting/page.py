"""The report: one HTML file that opens from disk without a network, a short Markdown for git, and the figures.

Videos and curves are inside the page as base64; nothing in it is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.diffusion.schedule import ScheduleConfig
from causvid.reporting import ablation, figures, tables
from causvid.reporting.published import Published, read_published
from causvid.reporting.tables import MODELS, SETS, Table
from causvid.reporting.templates import data_uri, render
from causvid.runtime.shapes import VideoShape

TEMPLATE = Path(__file__).with_name("page.html.jinja")
FIGURE4 = "figure4.svg"
FIGURE4_NOTE = (
    "Quality along a video: by block of a clip, and by window of a long rollout, each as long as a training clip. "
    "Bars are standard errors over seeds. The first place stands apart: it has nothing before it to go on from. "
    "Students of DMD are trained on their own rollouts where the line does not say otherwise."
)
ROLLOUTS = "rollouts"  # folder below a student's samples
STUDENTS = MODELS[1:]
ATTRIBUTES = ("colour", "background", "shape", "motion", "velocity")  # the judge's shares, the teacher's beside ours
CLOSE = 0.03  # of one that still counts as the teacher's
SHOWN_WIDTH = 176  # pixels across of a small video on the page, about; larger ones fill their column
SHEET_PROMPTS, SHEET_FRAMES = 4, 9


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Params section ``report``. rows: prompts shown side by side."""

    rows: int


@dataclass(frozen=True, kw_only=True)
class Show:
    """Videos of one id: by label, the file or None where that model has none."""

    id: str
    caption: str
    videos: Mapping[str, Path | None]


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything the page says. ``curves`` by stage; tables without a row are not shown.

    ``ablation``: Table 4 by what its students were trained on, empty when it was not run.
    """

    profile: str
    video: VideoShape
    schedule: ScheduleConfig
    published: Published
    results: tables.Results
    ablation: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, figures.Curve]
    samples: tuple[Show, ...]
    rollouts: tuple[Show, ...]
    reconstructions: tuple[Show, ...]

    @property
    def lead(self) -> str:
        """The outcome in one sentence."""
        found = self.results.get("measure_latency")
        first, rate = (tables.lookup(found, "ratio", name) for name in ("first_frame", "fps"))
        if first is None or rate is None:
            return "The speed of teacher and student was not measured."
        return (
            f"The causal student shows its first frame {first:.1f} times sooner than its bidirectional teacher "
            f"and makes {rate:.1f} times as many frames a second."
        )

    @property
    def standing(self) -> str:
        """Where the student is as right as its teacher and where it is not, in plain words; empty without a judge."""
        ours, theirs = (self.results.get(f"evaluate/{name}") for name in (MODELS[-1], MODELS[0]))
        pairs = {
            name: (tables.lookup(ours, "judge", name), tables.lookup(theirs, "judge", name)) for name in ATTRIBUTES
        }
        known = {name: pair for name, pair in pairs.items() if None not in pair}
        if not known:
            return ""
        behind = {name: pair for name, pair in known.items() if pair[1] - pair[0] > CLOSE}
        close = [name for name in known if name not in behind]
        parts = [f"as right as its teacher (within {CLOSE}) in {', '.join(close)}"] if close else []
        if behind:
            parts.append("behind it in " + ", ".join(f"{name} ({a:.3f}, {b:.3f})" for name, (a, b) in behind.items()))
        distances = [tables.lookup(found, "frechet_distance") for found in (ours, theirs)]
        if None not in distances and distances[1]:
            parts.append(f"its Fréchet distance {distances[0] / distances[1]:.2f} times the teacher's")
        along = ""
        speeds = [block["velocity"] for block in tables.lookup(ours, "judge", "blocks") or ()]
        if "velocity" in behind and len(speeds) > 1 and None not in speeds:
            shares = ", ".join(f"{speed:.2f}" for speed in speeds)
            along = f" By block of a clip, as they are made, its velocity is {shares}."
        return f"By the analytic judge the student is {'; '.join(parts)}.{along}"

    @property
    def facts(self) -> str:
        """The setting in one sentence."""
        video, steps = self.video, self.schedule.denoising_timesteps
        size = f"{video.frames} frames, {video.width}x{video.height} pixels at {video.fps} a second"
        return (
            f"Profile {self.profile}: clips of {size}. The teacher denoises a whole clip in "
            f"{self.schedule.solver_steps} steps; the student makes block after block in {len(steps)} "
            f"({', '.join(f'{step:g}' for step in steps)})."
        )

    def tables(self) -> list[Table]:
        """Every table that has something to say, in the order of the page."""
        found, published = self.results, self.published
        every = [
            tables.quality(found),
            tables.latency(found, published),
            tables.beside_paper(found, published),
            *self._table4(),
            tables.published_vbench(published),
            tables.vbench(found),
            tables.vbench_skipped(found),
            tables.drift(found),
            tables.training(found),
            tables.data(found),
        ]
        return [table for table in every if table.rows]

    def _table4(self) -> list[Table]:
        best, found = next(iter(tables.TABLE4)), self.ablation
        shown = [tables.table4(found.get(best), best, self.published)]
        shown += [tables.table4(values, inputs, self.published) for inputs, values in found.items() if inputs != best]
        return shown + [tables.claims(values, inputs) for inputs, values in found.items()]

    def along(self) -> dict[str, dict[str, list[figures.Point]]]:
        """The panels of figure 4, the judge's scores by block and by window of a rollout, a line a row of Table 4.

        Of what DMD's students can be trained on, the better one; the paper's student with each.
        """
        best, *others = tables.TABLE4
        rows = {ablation.ROWS[row]: (best, row) for row in ablation.DRAWN}
        ours = ablation.DRAWN[0]
        rows |= {f"{ablation.ROWS[ours]}, trained on {tables.INPUTS[other]}": (other, ours) for other in others}
        panels: dict[str, dict[str, list[figures.Point]]] = {}
        for along in ablation.ALONG:
            for measure, label in ablation.DRAWN_MEASURES.items():
                lines = {
                    name: tables.lookup(self.ablation, inputs, "curves", row, along, measure)
                    for name, (inputs, row) in rows.items()
                }
                drawn = {name: points for name, points in lines.items() if points}
                if drawn:
                    panels[f"{label} by {along[:-1]}"] = drawn
        return panels

    @property
    def videos_shown(self) -> int:
        """Playing videos on the page."""
        shows = (*self.samples, *self.rollouts, *self.reconstructions)
        return sum(path is not None for show in shows for path in show.videos.values())


def collect(
    reports: Path,
    samples: Path,
    published: Path,
    *,
    profile: str,
    video: VideoShape,
    schedule: ScheduleConfig,
    rows: int,
) -> Content:
    """Read the metrics, curves and manifests of a run; what is not there is left out."""
    curves = {stage: reports / stage / "curve.csv" for stage in tables.TRAINED}
    return Content(
        profile=profile,
        video=video,
        schedule=schedule,
        published=read_published(published),
        results=tables.read_results(reports),
        ablation=tables.read_ablation(reports),
        curves={stage: figures.read_curve(path) for stage, path in curves.items() if path.is_file()},
        samples=_shows({SETS[name]: samples / name for name in MODELS}, rows),
        rollouts=_shows({SETS[name]: samples / name / ROLLOUTS for name in STUDENTS}, rows),
        reconstructions=_shows({SETS["reconstruction"]: samples / "reconstruction"}, rows),
    )


def draw(content: Content, folder: Path) -> list[str]:
    """Write curves.svg, samples.png and, if there are results, rollouts.png and figure4.svg; return their names."""
    folder.mkdir(parents=True)
    names = ["curves.svg", "samples.png"]
    figures.draw_curves(content.curves, folder / "curves.svg")
    figures.draw_sheet(_strips(content.samples), folder / "samples.png", columns=SHEET_FRAMES)
    if content.rollouts:
        figures.draw_sheet(_strips(content.rollouts), folder / "rollouts.png", columns=SHEET_FRAMES)
        names.append("rollouts.png")
    if panels := content.along():
        figures.draw_along(panels, folder / FIGURE4)
        names.append(FIGURE4)
    return names


def html(content: Content, folder: Path) -> str:
    """The page; ``folder`` has the figures to put inside."""
    times = max(1, SHOWN_WIDTH // content.video.width)
    return render(
        TEMPLATE,
        content=content,
        curves=data_uri(folder / "curves.svg"),
        figure4=data_uri(folder / FIGURE4) if (folder / FIGURE4).is_file() else None,
        figure4_note=FIGURE4_NOTE,
        not_run=tables.NOT_RUN,
        not_measured=tables.NOT_MEASURED,
        small=times > 1,
        width=content.video.width * times,
        height=content.video.height * times,
    )


def markdown(content: Content, folder: str, names: list[str]) -> str:
    """The short report for git; ``folder`` is the figures' folder as the report links it."""
    parts = [f"# Report: profile {content.profile}", content.facts, content.lead, content.standing]
    parts += [f"![{name.split('.')[0]}]({folder}/{name})" for name in names if name.endswith(".png")]
    for table in content.tables():
        parts += [f"## {table.title}", table.markdown(), table.note]
    shown = (
        f"![figure 4]({folder}/{FIGURE4})\n\n{FIGURE4_NOTE}" if FIGURE4 in names else f"{tables.NOT_RUN.capitalize()}."
    )
    parts += [f"## Figure 4\n\n{shown}", f"## Curves\n\n![curves]({folder}/curves.svg)", "## Sources"]
    parts += ["\n".join(f"- {source.citation}. <{source.url}>" for source in content.published.sources.values())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shows(folders: Mapping[str, Path], limit: int) -> tuple[Show, ...]:
    """The first ids that every folder with a manifest has, with their videos."""
    listed = {
        label: {row["id"]: row for row in manifest.read_manifest(folder)}
        for label, folder in folders.items()
        if (folder / manifest.NAME).is_file()
    }
    common = sorted(set.intersection(*(set(rows) for rows in listed.values()))) if listed else []
    shows = []
    for key in common[:limit]:
        caption = next(rows[key]["caption"] for rows in listed.values())
        videos = {
            label: folder / listed[label][key]["path"] if label in listed else None for label, folder in folders.items()
        }
        shows.append(Show(id=key, caption=caption, videos=videos))
    return tuple(shows)


def _strips(shows: tuple[Show, ...]) -> list[figures.Strip]:
    return [
        figures.Strip(
            title=show.caption,
            videos={label: read_frames(path) for label, path in show.videos.items() if path is not None},
        )
        for show in shows[:SHEET_PROMPTS]
    ]
