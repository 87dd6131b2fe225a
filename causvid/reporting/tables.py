"""Build the tables of the report: text cells with measured numbers, read from JSON files, and with published numbers.

A missing number is shown as "not measured". A published number is always shown with its source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.reporting import ablation
from causvid.reporting.published import Published

NOT_MEASURED = "not measured"
NOT_RUN = "not run"
PUBLISHED = "published, not measured here"
# Maps folders of videos to labels, in the order of the tables. The models in MODELS generated their videos from the
# same prompts and noise.
SETS = {
    "clips": "real clips",
    "reconstruction": "VAE reconstructions",
    "teacher": "teacher",
    "causal_teacher": "causal teacher",
    "ode_init": "student, ODE init",
    "dmd": "student, DMD",
}
MODELS = ("teacher", "causal_teacher", "ode_init", "dmd")
TRAINED = ("train_vae", "train_teacher", "train_causal_teacher", "train_ode_init", "train_dmd")
SINGLE = ("download", "resample", *TRAINED, "generate_ode_pairs", "measure_latency")
# Name of the column, keys of the number in an evaluation, and number of decimals.
SCORES = (
    ("colour", ("judge", "colour"), 3),
    ("background", ("judge", "background"), 3),
    ("shape", ("judge", "shape"), 3),
    ("motion", ("judge", "motion"), 3),
    ("velocity", ("judge", "velocity"), 3),
    ("size flicker", ("judge", "area_cv"), 3),
    ("frame PSNR, dB", ("judge", "frame_psnr"), 1),
    ("motion PSNR, dB", ("judge", "temporal_psnr"), 1),
    ("temporal", ("table4", "temporal"), 1),
    ("frame", ("table4", "frame"), 1),
    ("text", ("table4", "text"), 1),
    ("diversity", ("table4", "diversity"), 1),
    ("flicker", ("flicker",), 4),
)

# Maps each value of train_dmd.inputs to a result of the ablation. The first value is the value in the profiles.
TABLE4 = {"rollout": "table4.json", "data": "table4_data.json"}
INPUTS = {"rollout": "their own rollouts", "data": "noised real clips"}

Results = Mapping[str, Mapping[str, Any]]


class Cell(str):
    """A cell with the origin of its number, which HTML pages show as a tooltip."""

    origin: str

    def __new__(cls, text: str, origin: str) -> Cell:
        """Create a cell with the content ``text``."""
        cell = super().__new__(cls, text)
        cell.origin = origin
        return cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells. ``note`` explains the columns to the reader."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), self.title

    def is_number(self, column: int) -> bool:
        """Return whether the column contains numbers, which pages align on the right. Missing numbers are ignored."""
        cells = [row[column] for row in self.rows if row[column] not in (NOT_MEASURED, NOT_RUN, "-")]
        return all(cell[:1].isdigit() or cell[:2].lstrip("-")[:1].isdigit() for cell in cells)

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, without the title and the note."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def read_results(reports: Path) -> dict[str, dict[str, Any]]:
    """Map names of stages ("train_vae", "evaluate/dmd", ...) to their metrics. Missing files are ignored."""
    files = {name: reports / name / "metrics.json" for name in SINGLE}
    files |= {f"evaluate/{name}": reports / "evaluate" / f"{name}.json" for name in SETS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}


def read_ablation(reports: Path) -> dict[str, dict[str, Any]]:
    """Map values of ``train_dmd.inputs`` to the tables of the ablation. Missing files are ignored."""
    files = {inputs: reports / "ablate" / name for inputs, name in TABLE4.items()}
    return {inputs: json.loads(path.read_text(encoding="utf-8")) for inputs, path in files.items() if path.is_file()}


def number(value: Any, decimals: int) -> str:
    """Format a number with ``decimals`` decimals. Any value that is not a number becomes "not measured"."""
    return f"{value:,.{decimals}f}" if isinstance(value, int | float) else NOT_MEASURED


def spread(value: Mapping[str, float | None] | None) -> str:
    """Format a mean ± its standard error over seeds, with two digits of the error. A single seed has no error."""
    if value is None or value["mean"] is None:
        return NOT_MEASURED
    mean, se = value["mean"], value["se"]
    if not se:
        return f"{mean:,.3f}" if se is None else f"{mean:,.3f} ± 0"
    decimals = max(0, min(6, 1 - math.floor(math.log10(se))))
    return f"{mean:,.{decimals}f} ± {se:,.{decimals}f}"


def lookup(values: Mapping[str, Any] | None, *path: str) -> Any:
    """Return the entry at ``path`` in nested mappings; None if it does not exist."""
    entry: Any = values
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return entry


def quality(results: Results) -> Table:
    """Build the table with the scores of every set of videos, with one row for each score."""
    found = {label: results.get(f"evaluate/{name}") for name, label in SETS.items()}
    psnr = number(lookup(results.get("train_vae"), "psnr_db"), 1)
    count = ("number of videos", *(number(lookup(each, "n"), 0) for each in found.values()))
    return Table(
        title="All scores",
        head=("score", *found),
        rows=(count, *_scores(found.values())),
        note="The analytic judge scores only videos with captions of the toy world. Colour, background, shape and "
        "motion are shares of the videos that agree with their captions; velocity is a share of the steps between "
        "frames. PSNR compares each frame with the ideal frame of the caption, with the object at its measured "
        "position (frame) or at the position of the true motion (motion). Temporal, frame, text and diversity are the "
        "columns of Table 4, out of 100. For size flicker and Fréchet distance (with its 95 % interval), lower is "
        "better; compare distances of equal n only. Flicker is the mean change between consecutive frames, including "
        "motion, and should be close to that of the real clips. VAE reconstructions are the ceiling of all models "
        f"here. PSNR of complete held-out clips through the VAE, in dB: {psnr}.",
    )


def floors(results: Results) -> Table:
    """Build the table with the scores of corrupted real clips."""
    found = lookup(results.get("evaluate/clips"), "floors") or {}
    return Table(
        title="Floors: scores of corrupted real clips",
        head=("score", *(_words(name) for name in found)),
        rows=tuple(_scores(found.values())) if found else (),
        note="A model whose score is close to that of a corruption has the fault of this corruption.",
    )


def _scores(found: Iterable[Mapping[str, Any] | None]) -> Iterator[tuple[str, ...]]:
    """Yield one row for each score, with a cell for each set of videos."""
    every = list(found)
    yield ("Fréchet distance", *(_frechet(each) for each in every))
    for label, path, decimals in SCORES:
        yield (label, *(number(lookup(each, *path), decimals) for each in every))


def _frechet(found: Mapping[str, Any] | None) -> str:
    """Format the Fréchet distance and, if it exists, the interval of the distance."""
    low, high = lookup(found, "frechet_interval") or (None, None)
    between = f" ({number(low, 2)} to {number(high, 2)})" if low is not None else ""
    return number(lookup(found, "frechet_distance"), 2) + between


def latency(results: Results, published: Published) -> Table:
    """Build the table of the measured and the published speeds of teacher and student, and of their ratios."""
    measured = results.get("measure_latency")
    device = lookup(measured, "device") or NOT_MEASURED
    rows: list[tuple[str, ...]] = []
    for name, label in (("teacher", "teacher, passes over a clip"), ("student", "student, DMD, passes over a block")):
        first, rate, passes = (lookup(measured, name, key) for key in ("first_frame_s", "fps", "passes"))
        rows.append((f"{label}: {number(passes, 0)}", number(first, 3), number(rate, 2), f"here, {device}"))
    ratios = (_times(lookup(measured, "ratio", name)) for name in ("first_frame", "fps"))
    rows.append(("student against teacher", *ratios, "here"))
    for teacher, student in zip(published.latency[::2], published.latency[1::2], strict=True):
        assert (teacher.like, student.like) == ("teacher", "student"), "published.yaml: latency rows come in pairs"
        where = f"{published.cite(teacher)}: {teacher.setting}"
        rows += [(row.model, number(row.first_frame_s, 2), number(row.fps, 2), where) for row in (teacher, student)]
        faster = _times(teacher.first_frame_s / student.first_frame_s), _times(student.fps / teacher.fps)
        rows.append(("student against teacher", *faster, published.cite(teacher)))
    return Table(
        title="Speed",
        head=("model", "first frame, s", "frames a second", "measured"),
        rows=tuple(rows),
        note=f"Rows with a citation are {PUBLISHED}. The other rows include decoding and exclude text encoding.",
    )


def beside_paper(results: Results, published: Published) -> Table:
    """Build a table of rows from the paper's tables 1 and 4, with the scores of the comparable models of this run."""
    rows = []
    for row in published.quality:
        if row.like is None:
            continue
        ours = results.get(f"evaluate/{row.like}")
        names = ("motion", "velocity", "frame_psnr")
        mine = [number(lookup(ours, "judge", name), 1 if name == "frame_psnr" else 3) for name in names]
        theirs = (number(value, 1) for value in (row.temporal, row.frame, row.text))
        rows.append((row.model, *theirs, published.cite(row), SETS[row.like], *mine))
    return Table(
        title="Quality beside the paper",
        head=("published", "temporal", "frame", "text", "where", "ours", "motion", "velocity", "frame PSNR, dB"),
        rows=tuple(rows),
        note=f"Columns on the left: {PUBLISHED} (VBench groups, in percent). Columns on the right: this run. Data, "
        "model size and measures differ, so compare the order of the rows, not the numbers.",
    )


def table4(found: Mapping[str, Any] | None, inputs: str, published: Published) -> Table:
    """Build a table with the measured Table 4 and the Table 4 of the paper.

    Args:
        found: Result of the ablation; None if the ablation was not run.
        inputs: Value of ``train_dmd.inputs``.
        published: Published numbers.
    """
    theirs = {row.row: row for row in published.quality if row.row}
    rows = []
    for name, row in ablation.ROWS.items():
        updates, flops = (lookup(found, "costs", name, key) for key in ("updates", "flops"))
        tera = None if flops is None else flops / 1e12
        cost = (number(updates, 0), number(tera, 1)) if found else (NOT_RUN, NOT_RUN)
        ours = (spread(lookup(found, "rows", name, measure)) if found else NOT_RUN for measure in ablation.MEASURES)
        paper = (number(getattr(theirs[name], group), 1) if name in theirs else "-" for group in ablation.QUALITY)
        rows.append((row.label, *cost, *ours, *paper))
    cited = published.cite(next(iter(theirs.values())))
    ran = (
        f"Columns on the left: mean ± standard error over {found['seeds']} seeds, each with {found['videos']} "
        f"videos of {found['prompts']} prompts; scores of the toy world's judge; profile {found['profile']}, "
        f"{_made_at(found)}. Students of DMD are trained on {INPUTS[inputs]}. The column "
        "'updates' counts the optimizer steps of the row's model, without those of the shared teacher. The column "
        "'training' is the planner's estimate of this training. It includes the critic, the ODE pairs and the causal "
        "teacher if the row needs them."
        if found
        else "Columns on the left: not run; run 'make ablation'."
    )
    columns = (*ablation.MEASURES, *(f"paper: {name}" for name in ablation.QUALITY))
    return Table(
        title="Table 4" if inputs == next(iter(TABLE4)) else f"Table 4, students trained on {INPUTS[inputs]}",
        head=("row", "updates", "training, TFLOP", *columns),
        rows=tuple(rows),
        note=f"{ran} Columns of the paper: {cited}, {PUBLISHED}; VBench groups in percent. Compare the order of the "
        "rows, not the numbers.",
    )


def _made_at(found: Mapping[str, Any]) -> str:
    """Return a text that names the commit with which the ablation was run."""
    commit = found["commit"]
    if commit is None:
        return "made outside git"
    return f"commit {commit['sha'][:7]}" + (" with changes" if commit["dirty"] else "")


def claims(found: Mapping[str, Any], inputs: str) -> Table:
    """Build the table of the claims about Table 4, with the measured gap and the verdict for each measure."""
    ours = {claim.name for claim in ablation.CLAIMS if claim.ours}
    rows = []
    for name, verdict in sorted(found["claims"].items()):
        claim, _, measure = name.partition("/")
        source = "this project" if claim in ours else "paper"
        rows.append((_words(claim), source, measure, spread(found["gaps"][name]), verdict))
    return Table(
        title=f"Claims about Table 4, students trained on {INPUTS[inputs]}",
        head=("claim", "source", "measure", "gap", "verdict"),
        rows=tuple(rows),
        note=f"A gap is the mean difference of two rows over the same seeds, positive in the direction of the claim. "
        f"The verdict is '{ablation.HOLDS}' or '{ablation.FAILS}' if the gap is more than two standard errors from "
        f"zero. By chance alone, this is the case for one gap in five with three seeds, and for one in nine with five. "
        f"All seeds share the teacher and the ODE pairs. 'As good as' allows a loss of {ablation.LEVEL:.0%} of the "
        f"teacher's score.",
    )


def published_vbench(published: Published) -> Table:
    """Build the table of the published VBench totals of the models whose weights were published."""
    return Table(
        title="VBench of the released models",
        head=("model", "total", "quality", "semantic", "where"),
        rows=tuple(
            (row.model, *(number(value, 2) for value in (row.total, row.quality, row.semantic)), published.cite(row))
            for row in published.vbench
        ),
        note=f"{PUBLISHED.capitalize()}; percent.",
    )


def vbench(results: Results) -> Table:
    """Build the table of VBench's scores of the sets of videos, with one row per dimension."""
    sets = [results.get(f"evaluate/{name}") for name in SETS]
    dimensions = sorted({name for found in sets for name in lookup(found, "vbench", "scores") or {}})
    versions = sorted({str(version) for found in sets if (version := lookup(found, "vbench", "version"))})
    return Table(
        title="VBench",
        head=("dimension", *SETS.values()),
        rows=tuple(
            (name, *(number(lookup(found, "vbench", "scores", name), 4) for found in sets)) for name in dimensions
        ),
        note=f"Scores of the package vbench {', '.join(versions)}; higher is better."
        if versions
        else "No dimension was scored.",
    )


def vbench_skipped(results: Results) -> Table:
    """Build the table of the requested VBench dimensions that were not scored, with the reasons."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, label in SETS.items():
        for dimension, reason in (lookup(results.get(f"evaluate/{name}"), "vbench", "skipped") or {}).items():
            reasons.setdefault((dimension, reason), []).append(label)
    rows = [
        (dimension, "all" if len(labels) == len(SETS) else ", ".join(labels), reason)
        for (dimension, reason), labels in sorted(reasons.items())
    ]
    return Table(title="VBench dimensions not scored", head=("dimension", "videos", "why"), rows=tuple(rows))


def drift(results: Results) -> Table:
    """Build the table of the scores of every window of the long rollouts."""
    drifts = {name: lookup(results.get(f"evaluate/{name}"), "drift") for name in MODELS}
    drifts = {name: value for name, value in drifts.items() if value}
    windows = max((value["windows"] for value in drifts.values()), default=0)
    rows = []
    for name, value in drifts.items():
        for measure, values in _per_window(value):
            cells = [number(part, 3) for part in values]
            first, last = values[0], values[-1]
            change = None if first is None or last is None else last - first
            rows.append((SETS[name], measure, *cells, *[NOT_MEASURED] * (windows - len(cells)), number(change, 3)))
    return Table(
        title="Drift over long rollouts",
        head=("model", "measure", *(f"window {index + 1}" for index in range(windows)), "change"),
        rows=tuple(rows),
        note="A window is as long as a training clip. Ideally, no measure changes from the first window to the last.",
    )


def training(results: Results) -> Table:
    """Build the table of the final metrics of the training stages, including the VAE's PSNR on held-out clips."""
    rows = [
        (stage, _words(name), f"{value:,}" if isinstance(value, int) else f"{value:.5g}")
        for stage in (*TRAINED, "generate_ode_pairs")
        for name, value in _numbers(results.get(stage, {}))
    ]
    return Table(title="Training", head=("stage", "measure", "value"), rows=tuple(sorted(rows, key=_stage_order)))


def data(results: Results) -> Table:
    """Build the table of the numbers of source videos, of clips, and of rejected videos for each reason."""
    rows = [
        (stage, _words(name), f"{value:,}")
        for stage in ("download", "resample")
        for name, value in _numbers(results.get(stage, {}))
    ]
    return Table(
        title="Data",
        head=("stage", "what", "count"),
        rows=tuple(rows),
        note="Every rejected video is listed with its reason in data/clips/rejected.jsonl.",
    )


def _times(value: Any) -> str:
    return f"{value:,.1f}x" if isinstance(value, int | float) else NOT_MEASURED


def _per_window(found: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[float | None]]]:
    if found.get("judge"):
        for measure in ("colour", "shape", "velocity"):
            yield measure, [window.get(measure) for window in found["judge"]]
    for measure, values in found["statistics"].items():
        yield measure, values["windows"]


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}: ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _words(name: str) -> str:
    return name.replace("psnr_db", "PSNR of held-out clips, dB").replace("_", " ")


def _stage_order(row: Sequence[str]) -> tuple[int, str]:
    return (*TRAINED[:3], "generate_ode_pairs", *TRAINED[3:]).index(row[0]), row[1]
