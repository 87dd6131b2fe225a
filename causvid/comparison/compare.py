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

from causvid.comparison import listing, runs, tables
from causvid.comparison.runs import Compared, Result
from causvid.data.videos import manifest
from causvid.harness import mlflow_store
from causvid.reporting import figures
from causvid.reporting.published import Published, read_published
from causvid.reporting.tables import (
    MODELS,
    NOT_MEASURED,
    NOT_RUN,
    SETS,
    TRAINED,
    Table,
)
from causvid.reporting.templates import data_uri, render
from causvid.runtime.files import write_text

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
UI = "http://127.0.0.1:5000"  # address of 'make ui', which serves a store that is a local file
STUDENT = "evaluate@dmd"
DRIFT = "drift."
# Maps scores along a rollout, as metrics of MLflow, to labels. The statistics exist also without the toy world.
DRIFTS = {
    **{f"judge.{name}": name for name in ("velocity", "colour", "shape", "seen")},
    "judge.frame_psnr": "frame PSNR, dB",
    **{f"statistics.{name}.windows": name for name in ("brightness", "saturation", "sharpness")},
}
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


def compare(
    api: MlflowClient, wanted: Sequence[str], published: Published, *, ui: str, baseline: str = ""
) -> Comparison:
    """Read the runs that match ``wanted``. ``runs.collect`` describes the arguments and errors.

    ``ui`` is the address of MLflow's web page, which the links contain.
    """
    compared = runs.collect(api, wanted, baseline)
    stages = runs.stages(compared)
    student, *others = (tables.quality(api, compared, name, published) for name in reversed(MODELS))
    first = [tables.overview(compared), tables.differences(compared, stages), student]
    first.append(tables.latency(compared, published))
    further = [*others, tables.keys(compared, stages)]
    return Comparison(
        compared=compared,
        published=published,
        tables=[table for table in first if table.rows],
        further=[table for table in further if table.rows],
        stages=[table for stage in stages if (table := tables.all_metrics(compared, stage)).rows],
        curves=_curves(api, compared, [stage for stage in stages if stage in TRAINED]),
        drifts=_drifts(api, compared),
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
    return f"CausVid: comparison of {len(compared)} runs" if len(compared) > 1 else f"CausVid: {compared[0].label}"


def _curves(api: MlflowClient, compared: Sequence[Compared], stages: Sequence[str]) -> list[figures.Panel]:
    """Return a panel for each training curve. Metrics with a slash in their names (speed, memory) are omitted."""
    panels = []
    for stage in stages:
        names = sorted({name for run in compared if stage in run.results for name in run.results[stage].metrics})
        for name in names:
            lines = _lines(api, compared, stage, name)
            if lines and "/" not in name:
                panels.append(figures.Panel(title=stage, x="step", y=name.replace("_", " "), lines=lines))
    return panels


def _drifts(api: MlflowClient, compared: Sequence[Compared]) -> list[figures.Panel]:
    """Return a panel for each score of the student along a rollout. Scores that are constant are omitted."""
    panels = []
    for measure, label in DRIFTS.items():
        lines = _lines(api, compared, STUDENT, f"{DRIFT}{measure}")
        if len({value for _, values in lines.values() for value in values}) > 1:
            panels.append(figures.Panel(title=f"student: {label}", x="window of the rollout", y=label, lines=lines))
    return panels


def _lines(api: MlflowClient, compared: Sequence[Compared], stage: str, name: str) -> dict[str, figures.Line]:
    """Return the values of a metric in each run in which the metric has several steps."""
    found = {
        run.label: runs.curve(api, run.results[stage], name) for run in compared if run.metric(stage, name) is not None
    }
    return {label: line for label, line in found.items() if len(line[0]) > 1}


def _bars(compared: Sequence[Compared]) -> dict[str, dict[str, float]]:
    """Map each run to the VBench scores of its student."""
    bars: dict[str, dict[str, float]] = {}
    prefix = "vbench.scores."
    for run in compared:
        metrics = run.results[STUDENT].metrics if STUDENT in run.results else {}
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
    wanted: Annotated[
        list[str] | None, typer.Argument(help="run ids, experiment names, or MLflow filters", metavar="[RUNS]")
    ] = None,
    baseline: Annotated[str, typer.Option(help="id of the run to compare with; empty = the oldest")] = "",
    out: Annotated[Path, typer.Option(help="folder of the page")] = Path("reports/compare"),
    published: Annotated[Path, typer.Option(help="published numbers")] = Path("data/inputs/published.yaml"),
) -> None:
    """Write a page that compares MLflow runs. Without RUNS, list the latest runs."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = mlflow_store.tracking_uri(Path.cwd())
    api = mlflow_store.client(uri)
    named = [name for name in wanted or [] if name.strip()]
    if not named:
        print(listing.latest(api))
        return
    try:
        ui = uri.rstrip("/") if uri.startswith("http") else UI
        found = compare(api, named, read_published(published), ui=ui, baseline=baseline)
    except ValueError as error:
        sys.exit(f"compare: {error}")
    write(found, out)
    print(f"{out / 'index.html'}: {len(found.compared)} runs")


if __name__ == "__main__":
    typer.run(main)
