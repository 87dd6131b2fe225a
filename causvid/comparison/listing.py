"""List the latest MLflow runs that can be compared."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from causvid.reporting.summary import HEADLINES
from causvid.reporting.tables import number

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SHOWN = 10  # number of runs
NONE = "MLflow has no run yet; 'make repro' creates one"


def latest(api: MlflowClient) -> str:
    """Return a table of the latest runs of ``dvc repro`` and of flows, and a command that compares two of them."""
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    found = api.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1000)
    runs = [run for run in found if "mlflow.parentRunId" not in run.data.tags][:SHOWN]
    if not runs:
        return NONE
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="underline")
    for name in ("id", "started (UTC)", "status", "name"):
        table.add_column(name, overflow="fold")
    for each in HEADLINES:
        table.add_column(each.label, justify="right")
    for run in runs:
        started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        metrics = run.data.metrics
        numbers = (number(metrics[each.name], each.decimals) if each.name in metrics else "-" for each in HEADLINES)
        table.add_row(run.info.run_id, started, run.info.status.lower(), run.info.run_name, *numbers)
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    pasted = " ".join(run.info.run_id for run in reversed(runs[:2]))
    return f'{out.getvalue()}\nmake compare RUNS="{pasted}"'
