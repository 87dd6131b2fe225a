"""Collect the content of the report from the results of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.data.videos import manifest
from causvid.diffusion.schedule import ScheduleConfig
from causvid.reporting import ablation, figures, scoreboard, tables
from causvid.reporting.published import Published, read_published
from causvid.reporting.race import Race, race
from causvid.reporting.sections import Section, sections
from causvid.reporting.tables import MODELS, SETS, lookup
from causvid.runtime.shapes import VideoShape

ROLLOUTS = "rollouts"  # subfolder of the folder of a student's samples
CAUSAL = MODELS[1:]
RACERS = {"teacher": MODELS[0], "student": MODELS[-1]}  # the models whose speed is measured
EXCERPT = 3  # number of prompts whose videos are also on the MLflow run of the whole experiment
BUSY = 0.25  # number of cores used by other processes above which measured speeds are marked


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
class Speed:
    """A number that describes the speed of a student, with its label; measured here or published."""

    value: str
    label: str
    is_measured: bool


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
        first, rate = (lookup(latency, "ratio", name) for name in ("first_frame", "fps"))
        if first is None or rate is None:
            return "The speed of teacher and student was not measured."
        return (
            f"The causal student shows its first frame {first:.1f} times sooner than its bidirectional teacher "
            f"and generates {rate:.1f} times as many frames per second."
        )

    @property
    def race(self) -> Race | None:
        """The race of teacher and student with the first prompt; None if the speed or the videos are missing."""
        measured = self.results.get("measure_latency")
        first = next(iter(self.samples), None)
        videos = {name: first.videos.get(SETS[model]) for name, model in RACERS.items()} if first else {}
        known = {name: path for name, path in videos.items() if path is not None}
        if measured is None or first is None or len(known) < len(RACERS):
            return None
        return race(measured, known, first.caption, fps=self.video.fps)

    @property
    def speeds(self) -> tuple[Speed, ...]:
        """The speed of the student, and the speed that the paper reports; empty if the speed was not measured."""
        student = lookup(self.results.get("measure_latency"), "student")
        if student is None:
            return ()
        paper = next(row for row in self.published.latency if row.like == "student")
        cited, passes = self.published.cite(paper), "passes over each frame"
        ours = (
            Speed(value=f"{student['first_frame_s']:#.3g} s", label="first frame", is_measured=True),
            Speed(value=f"{student['fps']:,.0f}", label="frames per second", is_measured=True),
            Speed(value=f"{student['passes']}", label=passes, is_measured=True),
        )
        theirs = (
            Speed(value=f"{paper.first_frame_s:g} s", label=f"first frame ({cited})", is_measured=False),
            Speed(value=f"{paper.fps:g}", label=f"frames per second ({cited})", is_measured=False),
            Speed(value=f"{paper.passes or tables.NOT_MEASURED}", label=f"{passes} ({cited})", is_measured=False),
        )
        return (*ours, *theirs)

    @property
    def blocks(self) -> list[int]:
        """Number of frames of each block of the student; empty if the speed was not measured."""
        return list(lookup(self.results.get("measure_latency"), "student", "frames") or ())

    @property
    def verdict(self) -> dict[str, str]:
        """Sentences about the scores of the student, keyed by their heading. Sentences without content are left out."""
        why = " ".join(part for part in (self.start, scoreboard.by_block(self.results)) if part)
        every = {"Good": scoreboard.good(self.results), "Not good": scoreboard.not_good(self.results), "Why": why}
        return {name: said for name, said in every.items() if said}

    @property
    def introduction(self) -> str:
        """The first sentences of the report and the captions of ``excerpt``, in Markdown."""
        said = [self.lead, *(f"{name}: {sentences}" for name, sentences in self.verdict.items())]
        captions = (f"- sample {show.id}: {show.caption}" for show in self.samples[:EXCERPT])
        return "\n\n".join([*said, "\n".join(captions)]).strip()

    @property
    def excerpt(self) -> list[Path]:
        """The first videos of the teacher and then of the student."""
        labels = [SETS[model] for model in RACERS.values()]
        return [video for label in labels for show in self.samples[:EXCERPT] if (video := show.videos[label])]

    @property
    def busy(self) -> str:
        """A sentence that warns of other load while the speed was measured; empty if there was little load."""
        load = lookup(self.results.get("measure_latency"), "other_load")
        if load is None or load < BUSY:
            return ""
        return (
            f"The machine was busy while the speed was measured: other processes used {load:.1f} cores on average. The "
            "times are therefore longer than on an idle machine."
        )

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
        """Sentences about the weights from which the student starts; empty if the training stages did not run."""
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

    def sections(self) -> tuple[Section, ...]:
        """Return the sections of the page."""
        return sections(self.results, self.ablation, self.published)

    def along(self) -> list[figures.Panel]:
        """Return the panels of figure 4: scores of the judge by block and by window of a rollout.

        A line is a row of Table 4. Students of DMD were trained on their own rollouts. In addition, the row of the
        paper's student has a line for each other value of ``train_dmd.inputs``.
        """
        best, *others = tables.TABLE4
        rows = {ablation.ROWS[row].label: (best, row) for row in ablation.DRAWN}
        ours = ablation.DRAWN[0]
        rows |= {f"{ablation.ROWS[ours].label}, trained on {tables.INPUTS[other]}": (other, ours) for other in others}
        panels = []
        for along in ablation.ALONG:
            for measure, label in ablation.DRAWN_MEASURES.items():
                lines = {
                    name: lookup(self.ablation, inputs, "curves", row, along, measure)
                    for name, (inputs, row) in rows.items()
                }
                drawn = {name: points for name, points in lines.items() if points}
                if drawn:
                    title = f"{label.partition(',')[0]} by {along[:-1]}"
                    panels.append(figures.Panel(title=title, x=along[:-1], y=label, lines=drawn))
        return panels

    @property
    def tables_shown(self) -> int:
        """Number of tables on the page, without the scoreboard."""
        return sum(len(section.tables) + len(section.folded) for section in self.sections())

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
