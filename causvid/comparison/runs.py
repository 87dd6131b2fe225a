"""Finished MLflow runs to compare: each with every stage's result, whether the run made it or took it over.

A stage whose result was there already makes no run of its own. The runs of later stages know the keys of those before
them, so its result is found by key, in whichever run made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LIMIT = 8  # runs on one page: as many colours as are told apart
SHORT = 8  # digits of an id or a commit that a reader needs


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one stage made. made_here: by the run that is compared, not by an earlier one with the same key.

    started: milliseconds since 1970.
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
        """Where a number of this result comes from."""
        return f"run {self.run_id}, {self.commit}, stage {self.stage}, key {self.key}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run: a whole ``dvc repro`` or flow, or a single stage. ``results`` by stage."""

    name: str
    run_id: str
    experiment: str
    started: str
    commit: str
    results: Mapping[str, Result]

    @property
    def label(self) -> str:
        """A short name that no other run has."""
        return f"{self.name} {self.run_id[:SHORT]}"

    def metric(self, stage: str, name: str) -> float | None:
        """A number of a stage's, None where it has none."""
        found = self.results.get(stage)
        return found.metrics.get(name) if found else None


def collect(api: MlflowClient, wanted: Sequence[str]) -> list[Compared]:
    """The runs that ``wanted`` names (ids, experiments, or MLflow filters), the oldest first.

    Raises ValueError for a name that fits nothing, for more than LIMIT runs, and for one without a finished stage.
    """
    experiments = {it.experiment_id: it.name for it in api.search_experiments()}
    found = {run.info.run_id: run for name in wanted for run in _select(api, name, experiments)}
    if len(found) > LIMIT:
        raise ValueError(f"{len(found)} runs fit {' '.join(wanted)}; at most {LIMIT} are compared: name them by id")
    ordered = sorted(found.values(), key=lambda run: (run.info.start_time, run.info.run_id))
    return [_compared(api, run, experiments) for run in ordered]


def _select(api: MlflowClient, name: str, experiments: Mapping[str, str]) -> list[Run]:
    """The runs that fit one name, or all of a few ids and experiments with spaces between."""
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
            f"{name!r} is no id of a run, no experiment (there are: {known}) and no filter that MLflow reads "
            f"({error.message})"
        ) from error
    if not found:
        raise ValueError(f"{name!r}: no run fits; MLflow's page ('make ui') lists them with their ids")
    return found


def _of_experiment(api: MlflowClient, experiment: str) -> list[Run]:
    """Its repros and flows that finished a stage."""
    above = [run for run in api.search_runs([experiment]) if "mlflow.parentRunId" not in run.data.tags]
    return [run for run in above if _children(api, run)]


def _compared(api: MlflowClient, run: Run, experiments: Mapping[str, str]) -> Compared:
    children = _children(api, run)
    alone = not children and "dvc_stage" in run.data.tags
    own = {child.data.tags["dvc_stage"]: child for child in ([run] if alone else children)}
    if not own:
        raise ValueError(
            f"run {run.info.run_id} ({run.info.run_name}, {run.info.status.lower()}) has no finished stage to compare"
        )
    results = {stage: _result(child, made_here=True) for stage, child in own.items()}
    keys = {stage: key for child in own.values() for stage, key in _upstream(child).items()}
    taken = {stage: key for stage, key in keys.items() if stage not in own}
    results |= dict(_by_key(api, taken, list(experiments)))
    if alone:  # stages of a matrix stand side by side whichever item they are of
        results[run.data.tags["dvc_stage"].partition("@")[0]] = results.pop(run.data.tags["dvc_stage"])
    return Compared(
        name=run.info.run_name,
        run_id=run.info.run_id,
        experiment=experiments[run.info.experiment_id],
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=_commit(run),
        results=dict(sorted(results.items(), key=lambda item: item[1].started)),
    )


def _children(api: MlflowClient, run: Run) -> list[Run]:
    """Finished stages of a repro or flow, the last one made at the end."""
    asked = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and attributes.status = 'FINISHED'"
    found = api.search_runs([run.info.experiment_id], asked, order_by=["attributes.start_time ASC"])
    return [child for child in found if "dvc_stage" in child.data.tags]


def _by_key(api: MlflowClient, keys: Mapping[str, str], experiments: list[str]) -> Iterator[tuple[str, Result]]:
    """The newest finished run of each stage with that key, in whatever experiment; none where it is gone."""
    for stage, key in keys.items():
        asked = f"tags.key = '{key}' and tags.dvc_stage = '{stage}' and attributes.status = 'FINISHED'"
        for run in api.search_runs(experiments, asked, max_results=1, order_by=["attributes.start_time DESC"]):
            yield stage, _result(run, made_here=False)


def _upstream(run: Run) -> dict[str, str]:
    found: dict[str, str] = json.loads(run.data.tags.get("upstream", "{}"))
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
        # What the machine did is no result; MLflow's page shows it.
        metrics={name: value for name, value in run.data.metrics.items() if not name.startswith("system/")},
    )


def _commit(run: Run) -> str:
    """The commit in words."""
    sha = run.data.tags.get("mlflow.source.git.commit")
    if sha is None:
        return "made outside git"
    return f"commit {sha[:SHORT]}" + (" with changes" if run.data.tags.get("git_dirty") == "true" else "")


def stages(compared: Iterable[Compared]) -> list[str]:
    """Every stage that a run has, in the order of the first that has it."""
    return list(dict.fromkeys(stage for run in compared for stage in run.results))


def curve(api: MlflowClient, result: Result, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; of a step that was logged twice (before and after a kill), the last."""
    points: dict[int, Any] = {}
    for point in sorted(api.get_metric_history(result.run_id, name), key=lambda it: it.timestamp):
        points[point.step] = point.value
    ordered = sorted(points.items())
    return [float(step) for step, _ in ordered], [value for _, value in ordered]
