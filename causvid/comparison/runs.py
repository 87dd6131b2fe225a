"""Read finished MLflow runs to compare, with the results of all stages of each run.

If the result of a stage already exists, the stage does not run, and MLflow has no new run of the stage. The MLflow runs
of executed stages list the keys of earlier stages, and of all other results that were up to date. The result is read
from the MLflow run with this key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from causvid.comparison import names

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LIMIT = 8  # largest number of runs on one page, because there are 8 distinguishable colours
SHORT = 8  # number of digits of an id or a commit that are shown


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one stage.

    Attributes:
        stage: Name of the stage.
        run_id: Id of the MLflow run of the stage.
        experiment_id: Id of the experiment that contains the MLflow run.
        key: Key of the stage.
        commit: Text that names the commit of the code.
        made_here: Whether the compared run computed the result. If False, an earlier run with the same key did.
        started: Start of the stage in milliseconds since 1970.
        params: Params of the stage.
        metrics: Maps each metric to its last value.
    """

    stage: str
    run_id: str
    experiment_id: str
    key: str
    commit: str
    made_here: bool
    started: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def origin(self) -> str:
        """A text that describes the origin of this result, for tooltips."""
        return f"run {self.run_id}, {self.commit}, stage {self.stage}, key {self.key}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One compared run: a ``dvc repro``, a flow, or a single stage.

    Attributes:
        label: A short, unique name that says in which params the run differs from the other compared runs.
        name: Name of the run.
        run_id: Id of the MLflow run.
        experiment: Name of the experiment.
        started: Date and time of the start of the run.
        commit: Text that names the commit of the code.
        results: Maps each stage to its result.
    """

    label: str
    name: str
    run_id: str
    experiment: str
    started: str
    commit: str
    results: Mapping[str, Result]

    @property
    def params(self) -> dict[str, str]:
        """Params of all stages."""
        return {name: value for result in self.results.values() for name, value in result.params.items()}

    def metric(self, stage: str, name: str) -> float | None:
        """Return a metric of a stage, or None if the stage does not have this metric."""
        result = self.results.get(stage)
        return result.metrics.get(name) if result else None


def collect(api: MlflowClient, wanted: Sequence[str], baseline: str = "") -> list[Compared]:
    """Return the runs that match ``wanted``: the baseline, then the other runs, the oldest run first.

    Args:
        api: Client of the MLflow store.
        wanted: Run ids, experiment names, or MLflow filters. A string may contain several ids and names, with spaces.
        baseline: Beginning of the id of the baseline, which is one of the runs; empty = the oldest run.

    Raises:
        ValueError: A name matches no run, more than ``LIMIT`` runs match, a run has no finished stage, or the baseline
            is not one of the runs.
    """
    experiments = {experiment.experiment_id: experiment.name for experiment in api.search_experiments()}
    found = {run.info.run_id: run for name in wanted for run in _select(api, name, experiments)}
    if len(found) > LIMIT:
        raise ValueError(f"{len(found)} runs match {' '.join(wanted)}; name at most {LIMIT} runs by their ids")
    if not any(name.startswith(baseline) for name in found):
        raise ValueError(f"the baseline {baseline!r} is not one of the runs; give one of {', '.join(sorted(found))}")
    is_other = {name: not name.startswith(baseline) for name in found}
    ordered = sorted(found.values(), key=lambda run: (is_other[run.info.run_id], run.info.start_time, run.info.run_id))
    compared = [_compared(api, run, experiments) for run in ordered]
    labels = names.labels([run.params for run in compared], [run.label for run in compared])
    return [replace(run, label=label) for run, label in zip(compared, labels, strict=True)]


def interval(api: MlflowClient, result: Result, name: str) -> tuple[float, float] | None:
    """Return the 95 % confidence interval that the metric ``name`` contains as two steps; None if there is none."""
    edges = curve(api, result, name)[1] if name in result.metrics else []
    return (edges[0], edges[1]) if len(edges) == 2 else None


def _select(api: MlflowClient, name: str, experiments: Mapping[str, str]) -> list[Run]:
    """Return the runs that match ``name``: an MLflow filter, or ids and experiment names separated by spaces."""
    from mlflow.exceptions import MlflowException

    ids = list(experiments)
    by_name = {experiments[key]: key for key in ids}
    words = name.split()
    found: list[Run] = []
    try:
        if words and all(word in by_name or re.fullmatch("[0-9a-f]{32}", word) for word in words):
            for word in words:
                found += _of_experiment(api, by_name[word]) if word in by_name else [api.get_run(word)]
        else:
            found += api.search_runs(ids, name)
    except MlflowException as error:
        known = ", ".join(sorted(by_name)) or "none"
        raise ValueError(
            f"{name!r} is neither a run id, nor an experiment (known: {known}), nor a valid MLflow filter "
            f"({error.message})"
        ) from error
    if not found:
        raise ValueError(f"{name!r} matches no run; MLflow's page ('make ui') lists the runs with their ids")
    return found


def _of_experiment(api: MlflowClient, experiment: str) -> list[Run]:
    """Return the runs of ``dvc repro`` and of flows in an experiment that have a finished stage."""
    parents = [run for run in api.search_runs([experiment]) if "mlflow.parentRunId" not in run.data.tags]
    return [run for run in parents if _children(api, run)]


def _compared(api: MlflowClient, run: Run, experiments: Mapping[str, str]) -> Compared:
    children = _children(api, run)
    alone = not children and "dvc_stage" in run.data.tags
    own = {child.data.tags["dvc_stage"]: child for child in ([run] if alone else children)}
    if not own:
        raise ValueError(
            f"run {run.info.run_id} ({run.info.run_name}, {run.info.status.lower()}) has no finished stage to compare"
        )
    results = {stage: _result(child, made_here=True) for stage, child in own.items()}
    # The last stage knows all results of the project that are up to date, also if no executed stage read them.
    keys = {} if alone else _tagged(children[-1], "unchanged")
    keys |= {stage: key for child in own.values() for stage, key in _tagged(child, "upstream").items()}
    taken = {stage: key for stage, key in keys.items() if stage not in own}
    results |= dict(_by_key(api, taken, list(experiments)))
    # The item of a matrix stage (``@x``) is removed, so that the table shows different items of a stage in one row.
    if alone:
        results[run.data.tags["dvc_stage"].partition("@")[0]] = results.pop(run.data.tags["dvc_stage"])
    return Compared(
        label=f"{run.info.run_name} {run.info.run_id[:SHORT]}",
        name=run.info.run_name,
        run_id=run.info.run_id,
        experiment=experiments[run.info.experiment_id],
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=_commit(run),
        results=dict(sorted(results.items(), key=lambda item: item[1].started)),
    )


def _children(api: MlflowClient, run: Run) -> list[Run]:
    """Return the runs of the finished stages in a run of ``dvc repro`` or of a flow, in the order of their start."""
    asked = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and attributes.status = 'FINISHED'"
    found = api.search_runs([run.info.experiment_id], asked, order_by=["attributes.start_time ASC"])
    return [child for child in found if "dvc_stage" in child.data.tags]


def _by_key(api: MlflowClient, keys: Mapping[str, str], experiments: list[str]) -> Iterator[tuple[str, Result]]:
    """Yield each stage and the result of the newest finished run with its key, in any experiment, if a run exists."""
    for stage, key in keys.items():
        asked = f"tags.key = '{key}' and tags.dvc_stage = '{stage}' and attributes.status = 'FINISHED'"
        for run in api.search_runs(experiments, asked, max_results=1, order_by=["attributes.start_time DESC"]):
            yield stage, _result(run, made_here=False)


def _tagged(run: Run, tag: str) -> dict[str, str]:
    """Return the keys of stages in a tag of a run, keyed by the name of the stage."""
    found: dict[str, str] = json.loads(run.data.tags.get(tag, "{}"))
    return found


def _result(run: Run, *, made_here: bool) -> Result:
    return Result(
        stage=run.data.tags["dvc_stage"],
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        key=run.data.tags.get("key", "unknown"),
        commit=_commit(run),
        made_here=made_here,
        started=run.info.start_time,
        params=dict(run.data.params),
        # System metrics are omitted, because they are not results.
        metrics={name: value for name, value in run.data.metrics.items() if not name.startswith("system/")},
    )


def _commit(run: Run) -> str:
    """Return a text that names the commit of the code."""
    sha = run.data.tags.get("mlflow.source.git.commit")
    if sha is None:
        return "made outside git"
    return f"commit {sha[:SHORT]}" + (" with changes" if run.data.tags.get("git_dirty") == "true" else "")


def stages(compared: Iterable[Compared]) -> list[str]:
    """Return the stages of all runs, in the order of their first appearance."""
    return list(dict.fromkeys(stage for run in compared for stage in run.results))


def curve(api: MlflowClient, result: Result, name: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of a metric.

    If the stage was killed and continued, a step may have been logged twice; the later value is used.
    """
    points: dict[int, Any] = {}
    for point in sorted(api.get_metric_history(result.run_id, name), key=lambda point: point.timestamp):
        points[point.step] = point.value
    ordered = sorted(points.items())
    return [float(step) for step, _ in ordered], [value for _, value in ordered]
