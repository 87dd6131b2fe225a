"""What came out, as tables: our numbers beside the ones others published. JSON in, text cells out.

A number that is missing is "not measured"; a published number always stands with its source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.reporting import ablation
from causvid.reporting.published import Published

NOT_MEASURED = "not measured"
NOT_RUN = "not run"
PUBLISHED = "published, not measured here"
# Folders of videos in the order of the tables, and the three that answer the same prompts from the same noise.
SETS = {
    "clips": "real clips",
    "reconstruction": "VAE reconstructions",
    "teacher": "teacher",
    "ode_init": "student, ODE init",
    "dmd": "student, DMD",
}
MODELS = ("teacher", "ode_init", "dmd")
TRAINED = ("train_vae", "train_teacher", "train_ode_init", "train_dmd")
SINGLE = ("download", "resample", *TRAINED, "generate_ode_pairs", "measure_latency")
# Column, where the number is in an evaluation, decimals.
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

# The ablation's results by what their students were trained on, the profile's way first.
TABLE4 = {"rollout": "table4.json", "data": "table4_data.json"}
INPUTS = {"rollout": "their own rollouts", "data": "noised real clips"}

Results = Mapping[str, Mapping[str, Any]]


class Cell(str):
    """A cell that says where its number comes from, to whoever points at it."""

    origin: str

    def __new__(cls, text: str, origin: str) -> Cell:
        """``text`` with its ``origin``."""
        cell = super().__new__(cls, text)
        cell.origin = origin
        return cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """title, head and rows of text cells; note: what a reader must know to read them."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), self.title

    def markdown(self) -> str:
        """The table in GitHub's Markdown, without its title."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def read_results(reports: Path) -> dict[str, dict[str, Any]]:
    """The stages' metrics by name ("train_vae", "evaluate/dmd", …); what is not there is left out."""
    files = {name: reports / name / "metrics.json" for name in SINGLE}
    files |= {f"evaluate/{name}": reports / "evaluate" / f"{name}.json" for name in SETS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}


def read_ablation(reports: Path) -> dict[str, dict[str, Any]]:
    """The ablation's tables by what the students were trained on; what is not there is left out."""
    files = {inputs: reports / "ablate" / name for inputs, name in TABLE4.items()}
    return {inputs: json.loads(path.read_text(encoding="utf-8")) for inputs, path in files.items() if path.is_file()}


def number(value: Any, decimals: int) -> str:
    """A number with that many decimals; what is none is not measured."""
    return f"{value:,.{decimals}f}" if isinstance(value, int | float) else NOT_MEASURED


def spread(value: Mapping[str, float | None] | None) -> str:
    """A mean ± its standard error over seeds, to two digits of the error; a single seed has none."""
    if value is None or value["mean"] is None:
        return NOT_MEASURED
    mean, se = value["mean"], value["se"]
    if not se:
        return f"{mean:,.3f}" if se is None else f"{mean:,.3f} ± 0"
    decimals = max(0, min(6, 1 - math.floor(math.log10(se))))
    return f"{mean:,.{decimals}f} ± {se:,.{decimals}f}"


def lookup(values: Mapping[str, Any] | None, *path: str) -> Any:
    """The entry at ``path`` of nested mappings, None where it or a mapping on the way is missing."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def quality(results: Results) -> Table:
    """Our five sets of videos: the judge of the toy world, Fréchet distance to real clips, flicker."""
    rows = []
    for name, label in SETS.items():
        found = results.get(f"evaluate/{name}")
        rows.append((label, number(lookup(found, "n"), 0), _frechet(found), *_scores(found)))
    real = results.get("evaluate/clips")
    for name, found in (lookup(real, "floors") or {}).items():
        label = f"floor: real clips, {_words(name)}"
        rows.append((label, number(lookup(real, "n"), 0), _frechet(found), *_scores(found)))
    psnr = number(lookup(results.get("train_vae"), "psnr_db"), 1)
    return Table(
        title="Quality",
        head=("videos", "n", "Fréchet distance", *(column for column, _, _ in SCORES)),
        rows=tuple(rows),
        note="The analytic judge knows the toy world's captions only: shares of videos (velocity: of steps) that do "
        "what the caption says; PSNR against the caption's own picture, where the object is (frame) and where it "
        "should have moved to (motion). Temporal, frame, text and diversity are Table 4's columns, out of 100. Size "
        "flicker and Fréchet distance (with its 95 % interval): lower is better; compare equal n only. Flicker is the "
        "mean change from frame to frame, motion included: as near to the real clips' as possible. VAE "
        "reconstructions are the ceiling of every model here; the floors are real clips, damaged. PSNR of whole "
        f"held-out clips through the VAE, in dB: {psnr}.",
    )


def _scores(found: Mapping[str, Any] | None) -> Iterator[str]:
    return (number(lookup(found, *path), decimals) for _, path, decimals in SCORES)


def _frechet(found: Mapping[str, Any] | None) -> str:
    """A Fréchet distance with its interval, where there is one."""
    low, high = lookup(found, "frechet_interval") or (None, None)
    between = f" ({number(low, 2)} to {number(high, 2)})" if low is not None else ""
    return number(lookup(found, "frechet_distance"), 2) + between


def latency(results: Results, published: Published) -> Table:
    """Teacher and student timed in one process, their ratio, and the same of the published pairs."""
    found = results.get("measure_latency")
    device = lookup(found, "device") or NOT_MEASURED
    rows: list[tuple[str, ...]] = []
    for name, label in (("teacher", "teacher, passes over a clip"), ("student", "student, DMD, passes over a block")):
        first, rate, passes = (lookup(found, name, key) for key in ("first_frame_s", "fps", "passes"))
        rows.append((f"{label}: {number(passes, 0)}", number(first, 3), number(rate, 2), f"here, {device}"))
    ratios = (_times(lookup(found, "ratio", name)) for name in ("first_frame", "fps"))
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
        note=f"Rows with a citation are {PUBLISHED}. Ours leave text encoding out and include decoding.",
    )


def beside_paper(results: Results, published: Published) -> Table:
    """The rows of the paper's tables 1 and 4 that the pipeline has a model for, with ours of the same kind beside."""
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
        note=f"Left: {PUBLISHED} (VBench groups, percent). Right: this run. Other data, other scale, other measures: "
        "compare the order of the rows, not the numbers.",
    )


def table4(found: Mapping[str, Any] | None, inputs: str, published: Published) -> Table:
    """The paper's Table 4 with ours over seeds beside it; ``found`` None: it was not run."""
    theirs = {row.row: row for row in published.quality if row.row}
    rows = []
    for name, label in ablation.ROWS.items():
        ours = (spread(lookup(found, "rows", name, measure)) if found else NOT_RUN for measure in ablation.MEASURES)
        paper = (number(getattr(theirs[name], it), 1) if name in theirs else "-" for it in ablation.QUALITY)
        rows.append((label, *ours, *paper))
    cited = published.cite(next(iter(theirs.values())))
    ran = (
        f"Ours: mean ± standard error over {found['seeds']} seeds, each {found['videos']} videos of "
        f"{found['prompts']} prompts; measures of the toy world; profile {found['profile']}, {_made_at(found)}. "
        f"Students of DMD are trained on {INPUTS[inputs]}."
        if found
        else "Ours was not run: 'make ablation'."
    )
    return Table(
        title="Table 4" if inputs == next(iter(TABLE4)) else f"Table 4, students trained on {INPUTS[inputs]}",
        head=("row", *ablation.MEASURES, *(f"paper: {name}" for name in ablation.QUALITY)),
        rows=tuple(rows),
        note=f"{ran} The paper's: {cited}, {PUBLISHED}; VBench groups in percent. Compare the order of the rows.",
    )


def _made_at(found: Mapping[str, Any]) -> str:
    """The commit of an ablation's result, in words."""
    commit = found["commit"]
    if commit is None:
        return "made outside git"
    return f"commit {commit['sha'][:7]}" + (" with changes" if commit["dirty"] else "")


def claims(found: Mapping[str, Any], inputs: str) -> Table:
    """What the paper says of its Table 4, a line per claim and measure: the gap here, and the verdict."""
    rows = [
        (_words(name.partition("/")[0]), name.partition("/")[2], spread(found["gaps"][name]), said)
        for name, said in sorted(found["claims"].items())
    ]
    return Table(
        title=f"The paper's claims, students trained on {INPUTS[inputs]}",
        head=("claim", "measure", "gap", "verdict"),
        rows=tuple(rows),
        note=f"Gaps are between paired seeds, positive in the paper's direction; {ablation.HOLDS} or {ablation.FAILS}: "
        f"beyond two standard errors of their mean, which by chance alone is one gap in six with three seeds, one in "
        f"nine with five. All seeds share teacher and pairs. 'As good as' allows {ablation.LEVEL:.0%} of the teacher's "
        f"score.",
    )


def published_vbench(published: Published) -> Table:
    """VBench totals of the models that the released weights belong to."""
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
    """VBench's own scores of our videos, one row a dimension."""
    sets = [results.get(f"evaluate/{name}") for name in SETS]
    dimensions = sorted({name for found in sets for name in lookup(found, "vbench", "scores") or {}})
    versions = sorted({str(version) for found in sets if (version := lookup(found, "vbench", "version"))})
    return Table(
        title="VBench",
        head=("dimension", *SETS.values()),
        rows=tuple(
            (name, *(number(lookup(found, "vbench", "scores", name), 4) for found in sets)) for name in dimensions
        ),
        note=f"Scored by the package vbench {', '.join(versions)}, higher is better."
        if versions
        else "Nothing was scored.",
    )


def vbench_skipped(results: Results) -> Table:
    """Dimensions that were asked for and not scored, with the reason."""
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
    """Scores of the long rollouts, window by window of the training length."""
    found = {name: lookup(results.get(f"evaluate/{name}"), "drift") for name in MODELS}
    found = {name: value for name, value in found.items() if value}
    windows = max((value["windows"] for value in found.values()), default=0)
    rows = []
    for name, value in found.items():
        for measure, values in _per_window(value):
            cells = [number(part, 3) for part in values]
            first, last = values[0], values[-1]
            change = None if first is None or last is None else last - first
            rows.append((SETS[name], measure, *cells, *[NOT_MEASURED] * (windows - len(cells)), number(change, 3)))
    return Table(
        title="Drift over long rollouts",
        head=("model", "measure", *(f"window {index + 1}" for index in range(windows)), "change"),
        rows=tuple(rows),
        note="A window is as long as a training clip. Nothing should change from the first to the last.",
    )


def training(results: Results) -> Table:
    """What the training stages reported at their end, the VAE's PSNR on clips it never saw among it."""
    rows = [
        (stage, _words(name), f"{value:,}" if isinstance(value, int) else f"{value:.5g}")
        for stage in (*TRAINED, "generate_ode_pairs")
        for name, value in _numbers(results.get(stage, {}))
    ]
    return Table(title="Training", head=("stage", "measure", "value"), rows=tuple(sorted(rows, key=_stage_order)))


def data(results: Results) -> Table:
    """What came in, what was kept, and what was rejected for which reason."""
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
    return (*TRAINED[:2], "generate_ode_pairs", *TRAINED[2:]).index(row[0]), row[1]
