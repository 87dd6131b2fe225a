"""Build the tables of the comparison. The first run is the baseline: other runs show their differences from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from causvid.comparison import runs
from causvid.comparison.runs import Compared, Result
from causvid.reporting.published import Published
from causvid.reporting.tables import NOT_MEASURED, NOT_RUN, PUBLISHED, SCORES, SETS, Cell, Table, number

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FRECHET = "Fréchet distance"
QUALITY = (*SCORES, (FRECHET, ("frechet_distance",), 2))
LOWER_IS_BETTER = ("size flicker", FRECHET)
NEITHER_IS_BETTER = ("flicker",)  # the flicker should be close to that of real clips
PAPER = "published"  # header of the column with published numbers
LATENCY = (
    ("teacher: first frame, s", "teacher.first_frame_s", 3),
    ("teacher: frames per second", "teacher.fps", 2),
    ("student: first frame, s", "student.first_frame_s", 3),
    ("student: frames per second", "student.fps", 2),
    ("student sooner, times", "ratio.first_frame", 1),
    ("student faster, times", "ratio.fps", 1),
)
BETTER, WORSE = "better", "worse"
TAKEN_OVER = "°"
MARKS = (
    " Parentheses contain the difference from the baseline, which is the first run, with its 95 % interval. ▲ marks a "
    "better score than that of the baseline, and ▼ a worse score; other differences are not larger than their "
    "intervals. ° marks the number of an unchanged stage, which is taken over from an earlier run."
)


class Change(Cell):
    """A cell with a number and its difference from the baseline. ``verdict`` is "better", "worse" or empty."""

    verdict: str

    def __new__(cls, text: str, origin: str, verdict: str) -> Change:
        """Create a cell with the content ``text``."""
        cell = super().__new__(cls, text, origin)
        assert isinstance(cell, Change)
        cell.verdict = verdict
        return cell


def overview(compared: Sequence[Compared]) -> Table:
    """Return one row for each run: what it is, and how many of its stages it executed."""
    rows = []
    for run in compared:
        made = sum(result.made_here for result in run.results.values())
        cells = (run.experiment, run.commit, run.started, str(made), str(len(run.results) - made), run.run_id)
        rows.append((run.label, run.name, *cells))
    return Table(
        title="Runs",
        head=("run", "name", "experiment", "commit", "started", "stages made", "taken over", "id"),
        rows=tuple(rows),
        note="A stage is taken over if its result already existed. Its numbers are then those of the run that computed "
        "the result. Hover over a number to see its run, commit and stage.",
    )


def differences(compared: Sequence[Compared], stages: Sequence[str]) -> Table:
    """Return the params whose values differ between the runs. A param that several stages read has one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for stage in stages:
        names = sorted({name for run in compared if stage in run.results for name in run.results[stage].params})
        for name in names:
            values = [_param(run.results.get(stage), name) for run in compared]
            if len(set(values) - {NOT_MEASURED}) > 1:
                rows.setdefault((name, *values), []).append(stage)
    return Table(
        title="Params that differ",
        head=("param", *(run.label for run in compared), "read by"),
        rows=tuple((*row, ", ".join(readers)) for row, readers in rows.items()),
    )


def _param(result: Result | None, name: str) -> str:
    if result is None or name not in result.params:
        return NOT_MEASURED
    return Cell(result.params[name], result.origin)


def keys(compared: Sequence[Compared], stages: Sequence[str]) -> Table:
    """Return the keys of the stages. Keys are equal for equal params, inputs and code."""
    rows = []
    for stage in stages:
        results = [run.results.get(stage) for run in compared]
        cells = [
            Cell(result.key[:8] + ("" if result.made_here else ", taken over"), result.origin) if result else NOT_RUN
            for result in results
        ]
        same = "same" if len({result.key for result in results if result}) == 1 else "differs"
        rows.append((stage, *cells, "-" if None in results else same))
    return Table(
        title="Stages by key",
        head=("stage", *(run.label for run in compared), ""),
        rows=tuple(rows) if len(compared) > 1 else (),
        note="A key is the checksum of everything that determines a result: params, inputs and code.",
    )


def _row(compared: Sequence[Compared], stage: str, label: str, metric: str, decimals: int) -> tuple[str, ...]:
    return (label, *(_number(run, stage, metric, decimals) for run in compared))


def _number(run: Compared, stage: str, metric: str, decimals: int) -> str:
    value = run.metric(stage, metric)
    if value is None:
        return NOT_MEASURED
    result = run.results[stage]
    return Cell(number(value, decimals) + ("" if result.made_here else TAKEN_OVER), result.origin)


def _against(
    api: MlflowClient, compared: Sequence[Compared], stage: str, label: str, path: Sequence[str], decimals: int
) -> tuple[str, ...]:
    """Return a row of a score with the differences from the baseline.

    The interval of a difference is computed from the intervals of both scores, as for independent samples. A
    difference is better or worse if its interval does not contain 0.
    """
    metric = ".".join(path)
    interval = f"{metric.removesuffix('distance')}interval" if label == FRECHET else f"intervals.{path[-1]}"
    base, *others = compared
    cells = [_number(base, stage, metric, decimals)]
    first = base.metric(stage, metric)
    for run in others:
        cell, value = _number(run, stage, metric, decimals), run.metric(stage, metric)
        if first is None or value is None or not isinstance(cell, Cell):
            cells.append(cell)
            continue
        edges = [runs.interval(api, each.results[stage], interval) for each in (base, run)]
        halves = [(high - low) / 2 for low, high in (edge for edge in edges if edge)]
        half = math.hypot(*halves) if len(halves) == len(edges) else None
        between = "" if half is None else f" ± {number(half, decimals)}"
        is_known = half is not None and abs(value - first) > half and label not in NEITHER_IS_BETTER
        verdict = (BETTER if (value > first) != (label in LOWER_IS_BETTER) else WORSE) if is_known else ""
        mark = {BETTER: " ▲", WORSE: " ▼"}.get(verdict, "")
        cells.append(Change(f"{cell} ({value - first:+.{decimals}f}{between}{mark})", cell.origin, verdict))
    return (label, *cells)


def _measured(rows: Sequence[tuple[str, ...]], columns: int) -> tuple[tuple[str, ...], ...]:
    """Return the rows in which at least one run has a number."""
    return tuple(row for row in rows if set(row[1 : columns + 1]) != {NOT_MEASURED})


def quality(api: MlflowClient, compared: Sequence[Compared], name: str, published: Published) -> Table:
    """Return the scores of the videos of a model, with differences from the baseline, and the paper's scores."""
    theirs = next((row for row in published.quality if row.like == name), None)
    rows = []
    for label, path, decimals in QUALITY:
        value = getattr(theirs, label, None)
        paper = Cell(number(value, decimals), published.cite(theirs)) if theirs and value is not None else "-"
        rows.append((*_against(api, compared, f"evaluate@{name}", label, path, decimals), paper))
    cited = f" VBench groups in percent ({published.cite(theirs)}) are {PUBLISHED}." if theirs else ""
    return Table(
        title=f"Quality: {SETS[name]}",
        head=("measure", *(run.label for run in compared), PAPER),
        rows=_measured(rows, len(compared)),
        note=f"Scores as in the report.{MARKS if len(compared) > 1 else ''}{cited} Compare the order of models, not "
        "the numbers.",
    )


def latency(compared: Sequence[Compared], published: Published) -> Table:
    """Return the speed of teacher and student in every run, and the published speed."""
    teacher, student = published.latency[:2]
    paper = {
        "teacher.first_frame_s": teacher.first_frame_s,
        "teacher.fps": teacher.fps,
        "student.first_frame_s": student.first_frame_s,
        "student.fps": student.fps,
        "ratio.first_frame": teacher.first_frame_s / student.first_frame_s,
        "ratio.fps": student.fps / teacher.fps,
    }
    rows = [
        (
            *_row(compared, "measure_latency", label, name, places),
            Cell(number(paper[name], places), published.cite(student)),
        )
        for label, name, places in LATENCY
    ]
    return Table(
        title="Speed",
        head=("measure", *(run.label for run in compared), PAPER),
        rows=_measured(rows, len(compared)),
        note=f"Published: {published.cite(student)}, {student.setting}; {PUBLISHED}. Runs on different machines, or on "
        "a busy machine, are not comparable.",
    )


def all_metrics(compared: Sequence[Compared], stage: str) -> Table:
    """Return all metrics of a stage, with the last value of each curve. For two runs, a column shows the difference."""
    names = sorted({name for run in compared if stage in run.results for name in run.results[stage].metrics})
    rows = []
    for name in names:
        values = [run.metric(stage, name) for run in compared]
        cells = [
            NOT_MEASURED if value is None else Cell(f"{value:.6g}", run.results[stage].origin)
            for run, value in zip(compared, values, strict=True)
        ]
        if len(values) == 2:
            first, second = values
            cells.append("-" if first is None or second is None else f"{second - first:+.4g}")
        rows.append((name, *cells))
    change = ("change",) if len(compared) == 2 else ()
    return Table(title=stage, head=("metric", *(run.label for run in compared), *change), rows=tuple(rows))
