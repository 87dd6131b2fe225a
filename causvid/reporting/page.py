"""Write the report: an HTML page, a short Markdown file for git, and the figures.

The HTML page contains videos and figures in base64, so that the page opens from disk without a network.
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
    "Quality along a video: by block of a clip, and by window of a long rollout. A window is as long as a training "
    "clip. Error bars are standard errors over seeds. The first point is not connected to the others, because the "
    "first block or window has no earlier frames to continue. Students of DMD are trained on their own rollouts unless "
    "the legend says otherwise."
)
ROLLOUTS = "rollouts"  # subfolder of the folder of a student's samples
CAUSAL = MODELS[1:]
ATTRIBUTES = ("colour", "background", "shape", "motion", "velocity")  # scores of the judge for student and teacher
CLOSE = 0.03  # largest difference of scores by which a student counts as equal to its teacher
SHOWN_WIDTH = 176  # approximate width in pixels of a small video on the page; larger videos fill their column
SHEET_PROMPTS, SHEET_FRAMES = 4, 9


@dataclass(frozen=True, kw_only=True)
class Show:
    """Videos of one sample id.

    Attributes:
        id: The id.
        caption: The prompt.
        videos: Maps the label of each model to the file of its video; None if the model has no videos.
    """

    id: str
    caption: str
    videos: Mapping[str, Path | None]


@dataclass(frozen=True, kw_only=True)
class Content:
    """Content of the report.

    Attributes:
        profile: Name of the profile.
        video: Size of the clips.
        schedule: Schedule of teacher and student.
        published: Published numbers.
        results: Metrics of the stages.
        ablation: Maps each value of ``train_dmd.inputs`` to Table 4; empty if the ablation was not run.
        curves: Maps stages to training curves.
        samples: Videos of all models for the same prompts and noise.
        rollouts: Long videos that the causal models generated.
        reconstructions: Real clips after encoding and decoding with the VAE.
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
        """A sentence with the measured speedup."""
        latency = self.results.get("measure_latency")
        first, rate = (tables.lookup(latency, "ratio", name) for name in ("first_frame", "fps"))
        if first is None or rate is None:
            return "The speed of teacher and student was not measured."
        return (
            f"The causal student shows its first frame {first:.1f} times sooner than its bidirectional teacher "
            f"and generates {rate:.1f} times as many frames per second."
        )

    @property
    def standing(self) -> str:
        """Sentences that compare the scores of student and teacher; empty if there is no judge."""
        ours, theirs = (self.results.get(f"evaluate/{name}") for name in (MODELS[-1], MODELS[0]))
        pairs = {
            name: (tables.lookup(ours, "judge", name), tables.lookup(theirs, "judge", name)) for name in ATTRIBUTES
        }
        known = {name: pair for name, pair in pairs.items() if None not in pair}
        if not known:
            return ""
        behind = {name: pair for name, pair in known.items() if pair[1] - pair[0] > CLOSE}
        close = [name for name in known if name not in behind]
        parts = [f"at most {CLOSE} below its teacher in {', '.join(close)}"] if close else []
        if behind:
            shown = ", ".join(f"{name} ({a:.3f}, teacher {b:.3f})" for name, (a, b) in behind.items())
            parts.append(f"more than {CLOSE} below its teacher in {shown}")
        sentences = [f"According to the analytic judge, the student scores {', and '.join(parts)}."]
        distances = [tables.lookup(found, "frechet_distance") for found in (ours, theirs)]
        if None not in distances and distances[1]:
            ratio = distances[0] / distances[1]
            sentences.append(f"The Fréchet distance of the student is {ratio:.2f} times that of its teacher.")
        speeds = [block["velocity"] for block in tables.lookup(ours, "judge", "blocks") or ()]
        if "velocity" in behind and len(speeds) > 1 and None not in speeds:
            shares = ", ".join(f"{speed:.2f}" for speed in speeds)
            sentences.append(f"The velocity scores of the blocks of a clip, from first to last, are {shares}.")
        return " ".join(sentences)

    @property
    def facts(self) -> str:
        """Sentences that describe the size of the clips and the steps of teacher and student."""
        video, steps = self.video, self.schedule.denoising_timesteps
        size = f"{video.frames} frames, {video.width}x{video.height} pixels at {video.fps} frames per second"
        return (
            f"Profile {self.profile}: clips of {size}. The teacher denoises a whole clip in "
            f"{self.schedule.solver_steps} steps. The student generates one block after another, each in {len(steps)} "
            f"steps (timesteps {', '.join(f'{step:g}' for step in steps)})."
        )

    @property
    def start(self) -> str:
        """Sentences that say from which weights the student starts; empty if the stages did not run."""
        teacher, causal_teacher, *_ = (f"data/checkpoints/{name}" for name in MODELS)
        student, causal = (self.results.get(stage) for stage in ("train_ode_init", "train_causal_teacher"))
        if student is None or causal is None:
            return ""
        start = student["start"]
        if start == causal_teacher and causal["model"] != "causal":
            start = causal["start"]
        sentences = {
            teacher: "The student starts from the weights of the bidirectional teacher, as in the paper.",
            causal_teacher: "The student starts from a causal teacher, which is a causal model of many steps. This "
            "start is not the paper's: the student of the paper starts from the weights of the bidirectional teacher.",
        }
        said = sentences.get(start, f"The student starts from {start}.")
        notes = {
            "converted": " The causal teacher in the tables is not trained: it is a causal model with the weights of a "
            f"bidirectional model, {causal['start']}.",
            "bidirectional": " All models are bidirectional, also the causal teacher in the tables, because "
            "model.frames_per_block is null.",
        }
        return said + notes.get(causal["model"], "")

    def tables(self) -> list[Table]:
        """Return the tables that have rows, in the order of the page."""
        results, published = self.results, self.published
        every = [
            tables.quality(results),
            tables.latency(results, published),
            tables.beside_paper(results, published),
            *self._table4(),
            tables.published_vbench(published),
            tables.vbench(results),
            tables.vbench_skipped(results),
            tables.drift(results),
            tables.training(results),
            tables.data(results),
        ]
        return [table for table in every if table.rows]

    def _table4(self) -> list[Table]:
        best, every = next(iter(tables.TABLE4)), self.ablation
        shown = [tables.table4(every.get(best), best, self.published)]
        shown += [tables.table4(values, inputs, self.published) for inputs, values in every.items() if inputs != best]
        return shown + [tables.claims(values, inputs) for inputs, values in every.items()]

    def along(self) -> dict[str, dict[str, list[figures.Point]]]:
        """Return the panels of figure 4: scores of the judge by block and by window of a rollout.

        A line is a row of Table 4. Students of DMD were trained on their own rollouts. In addition, the row of the
        paper's student has a line for each other value of ``train_dmd.inputs``.
        """
        best, *others = tables.TABLE4
        rows = {ablation.ROWS[row].label: (best, row) for row in ablation.DRAWN}
        ours = ablation.DRAWN[0]
        rows |= {f"{ablation.ROWS[ours].label}, trained on {tables.INPUTS[other]}": (other, ours) for other in others}
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
        """Number of videos on the page."""
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
    """Read the metrics, curves and manifests of a run. Missing files are ignored.

    Args:
        reports: Folder of the stages' metrics and curves.
        samples: Folder of the samples.
        published: File of the published numbers.
        profile: Name of the profile.
        video: Size of the clips.
        schedule: Schedule of teacher and student.
        rows: Number of prompts whose videos are shown.
    """
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
        rollouts=_shows({SETS[name]: samples / name / ROLLOUTS for name in CAUSAL}, rows),
        reconstructions=_shows({SETS["reconstruction"]: samples / "reconstruction"}, rows),
    )


def draw(content: Content, folder: Path) -> list[str]:
    """Write curves.svg, samples.png and, if there are results, rollouts.png and figure4.svg. Return the file names."""
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
    """Return the HTML page with the figures that ``draw`` wrote to ``folder``."""
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
    """Return the short report for git.

    Args:
        content: Content of the report.
        folder: Folder of the figures, relative to the report.
        names: Names of the figures, as ``draw`` returns them.
    """
    parts = [f"# Report: profile {content.profile}", content.facts, content.start, content.lead, content.standing]
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
    """Return the videos of the first ``limit`` ids that all folders with a manifest have in common."""
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
