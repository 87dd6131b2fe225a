"""``make compare RUNS=...``: write a page that compares finished MLflow runs with each other and with the paper.

This is not a DVC stage, because the runs in MLflow can change at any time. The page opens from disk without a network.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from causvid.comparison import runs
from causvid.comparison.runs import Compared, Result
from causvid.data.videos import manifest
from causvid.harness import mlflow_store
from causvid.reporting import figures
from causvid.reporting.published import Published, read_published
from causvid.reporting.tables import (
    MODELS,
    NOT_MEASURED,
    NOT_RUN,
    PUBLISHED,
    SCORES,
    SETS,
    TRAINED,
    Cell,
    Table,
    number,
)
from causvid.reporting.templates import data_uri, render
from causvid.runtime.files import write_text

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
UI = "http://127.0.0.1:5000"  # address of 'make ui', which serves a store that is a local file
QUALITY = (*SCORES, ("Fréchet distance", ("frechet_distance",), 2))
PAPER = "published"  # header of the column with published numbers
DRIFT = "drift."
LATENCY = (
    ("teacher: first frame, s", "teacher.first_frame_s", 3),
    ("teacher: frames a second", "teacher.fps", 2),
    ("student: first frame, s", "student.first_frame_s", 3),
    ("student: frames a second", "student.fps", 2),
    ("student sooner, times", "ratio.first_frame", 1),
    ("student faster, times", "ratio.fps", 1),
)
BARS = "vbench.svg"


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Videos of one prompt. ``videos`` maps the label of each run to a data URI; None if the run has no video."""

    caption: str
    same_noise: bool
    videos: Mapping[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Content of the page.

    Attributes:
        tables: Tables at the top of the page.
        further: Tables below the figures.
        stages: One table per stage, with all metrics of the stage.
        curves: Panels with the training curves of all runs.
        drifts: Panels with the scores along a rollout of all runs.
        bars: Maps runs and dimensions to VBench scores of the student.
        clips: Maps models to videos.
        fps: Frames per second of the videos of the first run that has videos.
        links: Maps stages to the addresses of MLflow's comparisons.
    """

    compared: Sequence[Compared]
    published: Published
    tables: Sequence[Table]
    further: Sequence[Table]
    stages: Sequence[Table]
    curves: Sequence[figures.Panel]
    drifts: Sequence[figures.Panel]
    bars: Mapping[str, Mapping[str, float]]
    clips: Mapping[str, Sequence[Clips]]
    fps: float
    links: Mapping[str, str]


def compare(api: MlflowClient, wanted: Sequence[str], published: Published, *, ui: str) -> Comparison:
    """Read the runs that match ``wanted``. ``runs.collect`` describes the arguments and errors.

    ``ui`` is the address of MLflow's web page, which the links contain.
    """
    compared = runs.collect(api, wanted)
    stages = runs.stages(compared)
    student, *others = (_quality(compared, name, published) for name in reversed(MODELS))
    first = [_overview(compared), _differences(compared, stages), student, _latency(compared, published)]
    further = [*others, _keys(compared, stages)]
    return Comparison(
        compared=compared,
        published=published,
        tables=[table for table in first if table.rows],
        further=[table for table in further if table.rows],
        stages=[table for stage in stages if (table := _all_metrics(compared, stage)).rows],
        curves=_lines(api, compared, [stage for stage in stages if stage in TRAINED], drift=False),
        drifts=_lines(api, compared, [stage for stage in stages if stage.startswith("evaluate")], drift=True),
        bars=_bars(compared),
        clips={SETS[name]: found for name in reversed(MODELS) if (found := _clips(api, compared, f"sample@{name}"))},
        fps=_fps(compared),
        links=dict(_links(compared, stages, ui)),
    )


def write(found: Comparison, out: Path) -> None:
    """Write the self-contained page ``out``/index.html, and write ``out``/compare.md with its figures."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.svg"):  # an earlier comparison wrote these figures
        old.unlink()
    drawn = {
        "Training curves": figures.draw_overlaid(found.curves, out, "curves"),
        "Drift along a rollout, by window or block": figures.draw_overlaid(found.drifts, out, "drift"),
    }
    if found.bars:
        figures.draw_bars(found.bars, out / BARS)
        drawn["VBench of the student"] = [BARS]
    drawn = {heading: names for heading, names in drawn.items() if names}
    page = render(
        TEMPLATE,
        found=found,
        folder=out,
        drawn=drawn,
        missing=(NOT_MEASURED, NOT_RUN),
        not_measured=NOT_MEASURED,
        title=_title(found.compared),
    )
    write_text(out / "index.html", page)
    write_text(out / "compare.md", markdown(found, drawn))


def markdown(found: Comparison, drawn: Mapping[str, Sequence[str]]) -> str:
    """Return the tables and figures as Markdown, for a pull request or a wiki."""
    parts = [f"# {_title(found.compared)}"]
    for table in (*found.tables, *found.further):
        parts += [f"## {table.title}", table.markdown(), table.note]
    for heading, names in drawn.items():
        parts += [f"## {heading}", "\n".join(f"![{name.partition('.')[0]}]({name})" for name in names)]
    if found.links:
        parts += ["## In MLflow", "\n".join(f"- [{stage}](<{link}>)" for stage, link in found.links.items())]
    sources = [f"- {source.citation}. <{source.url}>" for source in found.published.sources.values()]
    parts += ["## Sources", "\n".join(sources)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(compared: Sequence[Compared]) -> str:
    return "CausVid, compared: " + ", ".join(run.label for run in compared)


def _overview(compared: Sequence[Compared]) -> Table:
    rows = []
    for run in compared:
        made = sum(result.made_here for result in run.results.values())
        cells = (run.experiment, run.commit, run.started, str(made), str(len(run.results) - made), run.run_id)
        rows.append((run.label, *cells))
    return Table(
        title="Runs",
        head=("run", "experiment", "commit", "started", "stages made", "taken over", "id"),
        rows=tuple(rows),
        note="A stage is taken over if its result already existed. Its numbers are then those of the run that computed "
        "the result. Hover over a number to see its run, commit and stage.",
    )


def _differences(compared: Sequence[Compared], stages: Sequence[str]) -> Table:
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


def _keys(compared: Sequence[Compared], stages: Sequence[str]) -> Table:
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
    return NOT_MEASURED if value is None else Cell(number(value, decimals), run.results[stage].origin)


def _measured(rows: Sequence[tuple[str, ...]], columns: int) -> tuple[tuple[str, ...], ...]:
    """Return the rows in which at least one run has a number."""
    return tuple(row for row in rows if set(row[1 : columns + 1]) != {NOT_MEASURED})


def _quality(compared: Sequence[Compared], name: str, published: Published) -> Table:
    theirs = next((row for row in published.quality if row.like == name), None)
    rows = []
    for label, path, decimals in QUALITY:
        value = getattr(theirs, label, None)
        paper = Cell(number(value, decimals), published.cite(theirs)) if theirs and value is not None else "-"
        rows.append((*_row(compared, f"evaluate@{name}", label, ".".join(path), decimals), paper))
    cited = f" VBench groups in percent ({published.cite(theirs)}) are {PUBLISHED}." if theirs else ""
    return Table(
        title=f"Quality: {SETS[name]}",
        head=("measure", *(run.label for run in compared), PAPER),
        rows=_measured(rows, len(compared)),
        note=f"Scores as in the report.{cited} Compare the order of models, not the numbers.",
    )


def _latency(compared: Sequence[Compared], published: Published) -> Table:
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


def _all_metrics(compared: Sequence[Compared], stage: str) -> Table:
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


def _lines(
    api: MlflowClient, compared: Sequence[Compared], stages: Sequence[str], *, drift: bool
) -> list[figures.Panel]:
    """Return a panel for each metric with several steps: metrics along a rollout if ``drift``, else all other metrics.

    Metrics with a slash in their names (speed, memory, statistics of single frames) are omitted.
    """
    panels = []
    for stage in stages:
        names = sorted({name for run in compared if stage in run.results for name in run.results[stage].metrics})
        for name in names:
            if "/" in name or drift != name.startswith(DRIFT):
                continue
            lines = {run.label: runs.curve(api, run.results[stage], name) for run in compared if _has(run, stage, name)}
            lines = {label: line for label, line in lines.items() if len(line[0]) > 1}
            if lines:
                measure = name.removeprefix(DRIFT).replace("_", " ")
                panels.append(
                    figures.Panel(title=stage, x="part of the rollout" if drift else "step", y=measure, lines=lines)
                )
    return panels


def _has(run: Compared, stage: str, name: str) -> bool:
    return run.metric(stage, name) is not None


def _bars(compared: Sequence[Compared]) -> dict[str, dict[str, float]]:
    """Map each run to the VBench scores of its student."""
    bars: dict[str, dict[str, float]] = {}
    prefix = "vbench.scores."
    for run in compared:
        metrics = run.results["evaluate@dmd"].metrics if "evaluate@dmd" in run.results else {}
        scores = {
            name.removeprefix(prefix): value for name, value in sorted(metrics.items()) if name.startswith(prefix)
        }
        if scores:
            bars[run.label] = scores
    return bars


def _clips(api: MlflowClient, compared: Sequence[Compared], stage: str) -> list[Clips]:
    """Return the videos that a sampling stage logged to MLflow, with one entry per video id and prompt in any run."""
    found = {run.label: _videos(api, run.results[stage]) for run in compared if stage in run.results}
    noises = {
        json.dumps(
            [(k, v) for k, v in sorted(run.results[stage].params.items()) if k == "seed" or k.startswith("video.")]
        )
        for run in compared
        if stage in run.results
    }
    prompts = dict.fromkeys(key for videos in found.values() for key in videos)
    return [
        Clips(
            caption=caption,
            same_noise=len(noises) == 1,
            videos={run.label: found.get(run.label, {}).get((name, caption)) for run in compared},
        )
        for name, caption in prompts
    ]


def _fps(compared: Sequence[Compared]) -> float:
    every = (result.params for run in compared for stage, result in run.results.items() if stage.startswith("sample"))
    return float(next((params["video.fps"] for params in every if "video.fps" in params), 1))


def _videos(api: MlflowClient, result: Result) -> dict[tuple[str, str], str]:
    """Map (id, prompt) to the data URI of each video of a run."""
    if not any(artifact.path == "samples" for artifact in api.list_artifacts(result.run_id)):
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(api.download_artifacts(result.run_id, "samples", scratch))
        if not (folder / manifest.NAME).is_file():
            return {}
        rows = [row for row in manifest.read_manifest(folder) if (folder / row["path"]).is_file()]
        return {(row["id"], row["caption"]): data_uri(folder / row["path"]) for row in rows}


def _links(compared: Sequence[Compared], stages: Sequence[str], ui: str) -> Iterator[tuple[str, str]]:
    """Yield each stage with the address of MLflow's page that compares the runs of the stage."""
    for stage in stages:
        experiment_of = {
            run.results[stage].run_id: run.results[stage].experiment_id for run in compared if stage in run.results
        }
        if len(experiment_of) > 1:
            ids, experiments = json.dumps(list(experiment_of)), json.dumps(sorted(set(experiment_of.values())))
            yield stage, f"{ui}/#/compare-runs?runs={quote(ids)}&experiments={quote(experiments)}"


def main(
    wanted: Annotated[list[str], typer.Argument(help="run ids, experiment names, or MLflow filters", metavar="RUNS")],
    out: Annotated[Path, typer.Option(help="folder of the page")] = Path("reports/compare"),
    published: Annotated[Path, typer.Option(help="published numbers")] = Path("data/inputs/published.yaml"),
) -> None:
    """Write a page that compares MLflow runs."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = mlflow_store.tracking_uri(Path.cwd())
    try:
        found = compare(
            mlflow_store.client(uri),
            wanted,
            read_published(published),
            ui=uri.rstrip("/") if uri.startswith("http") else UI,
        )
    except ValueError as error:
        sys.exit(f"compare: {error}")
    write(found, out)
    print(f"{out / 'index.html'}: {len(found.compared)} runs")


if __name__ == "__main__":
    typer.run(main)
