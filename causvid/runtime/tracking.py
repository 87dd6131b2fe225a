"""MLflow: one experiment per profile, a parent run per flow or ``dvc repro``, a child run per executed stage.

The only writer of stage runs. It records what a stage did; nothing ever reads a result from it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel
    from mlflow.tracking import MlflowClient

PARENT_VARIABLE = "CAUSVID_PARENT_RUN_ID"
VALUE_LIMIT = 6000  # characters MLflow stores of one parameter
BATCH_LIMIT = 100  # parameters it takes at once
DIGEST_LIMIT = 36  # characters it stores of a dataset's digest
UNFINISHED = "mlflow_run.json"  # in a stage's work folder: the run that goes on when the stage does
REPRO_NOTE = "One `dvc repro`. The stages that it executed are the runs below this one."
SYSTEM_SECONDS = 10  # between two looks at the machine


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or an sqlite file in the project's root (absolute, so that no cwd can change it)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Params section ``watch``: what a training leaves to look at. In no stage's params: it must not change a result.

    samples_every: steps between sample videos, 0 = none; samples: how many; keep_checkpoints_every: steps whose
    checkpoints stay, None = the newest alone.
    """

    samples_every: int
    samples: int
    keep_checkpoints_every: int | None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("samples_every", self.samples_every, 0),
            ("samples", self.samples, 1),
            ("keep_checkpoints_every", self.keep_checkpoints_every, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"watch.{name} is {value}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage's result is made from.

    key: stands for all of it; inputs: digests by path; upstream: keys of the stages that made those, by stage.
    """

    key: str
    inputs: Mapping[str, str]
    upstream: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A handle on one MLflow run. Small and picklable, so that rank 0 of a Ray worker can log into the stage's run.

    model_id: of the MLflow model that the stage's results are about; None for none.
    """

    uri: str
    run_id: str
    model_id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at ``step``."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        client(self.uri).log_batch(self.run_id, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Log the numbers in ``results``: nested ones by dotted names, the entries of a list at steps 0, 1, ..."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [
            Metric(name, float(value), now, step, model_id=self.model_id) for name, value, step in numbers(results)
        ]
        client(self.uri).log_batch(self.run_id, metrics=found)

    def log_artifact(self, path: Path, folder: str) -> None:
        """Copy a file into the run's artifacts."""
        client(self.uri).log_artifact(self.run_id, str(path), folder)

    def log_model(self, name: str, path: Path, key: str) -> None:
        """Make the model in folder ``path`` known as ``name``, once for this run; its files stay with DVC."""
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        with _not_essential("the model"):
            api = client(self.uri)
            experiment = api.get_run(self.run_id).info.experiment_id
            ours = (model for model in _models(api, experiment, name) if model.source_run_id == self.run_id)
            tags = {MLFLOW_MODEL_IS_EXTERNAL: "true", "key": key, "path": path.as_posix()}
            model = next(ours, None) or api.create_logged_model(experiment, model_name(name), self.run_id, tags)
            api.finalize_logged_model(model.model_id, "READY")


def client(uri: str) -> MlflowClient:
    """A client for ``uri``, with MLflow's telemetry off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_id(api: MlflowClient, profile: str) -> str:
    """The id of the experiment ``causvid/<profile>``, made when missing (by whoever comes first)."""
    from mlflow.exceptions import MlflowException

    name = f"causvid/{profile}"
    found = api.get_experiment_by_name(name)
    if found is None:
        try:
            return str(api.create_experiment(name))
        except MlflowException:  # another stage made it in the meantime
            found = api.get_experiment_by_name(name)
    return str(found.experiment_id)


def start_parent(name: str, profile: str, root: Path, tags: Mapping[str, str]) -> str:
    """Make a parent run (a flow, or one ``dvc repro``) and return its id."""
    api = client(tracking_uri(root))
    return str(api.create_run(experiment_id(api, profile), run_name=name, tags={**tags, **git_tags(root)}).info.run_id)


@contextmanager
def child_run(
    stage: str, profile: str, root: Path, params: Mapping[str, Any], made: Made, folder: Path
) -> Iterator[Tracker]:
    """A run for one executed stage, under the flow's or the repro's parent; FAILED when the body raises.

    A stage that was cut short goes on in the run it had, of which ``folder`` knows; it moves to the new parent.
    Results of ``stage``@x are of the model x, if a stage upstream made one.
    """
    uri = tracking_uri(root)
    api = client(uri)
    parent = os.environ.get(PARENT_VARIABLE) or _repro_parent(api, profile, root)
    tags = {"dvc_stage": stage, "key": made.key, "upstream": json.dumps(made.upstream), **git_tags(root)}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    tags["mlflow.note.content"] = note(stage, made, tags)
    run_id = _unfinished_run(api, uri, folder)
    if run_id is None:
        run_id = api.create_run(experiment_id(api, profile), run_name=stage, tags=tags).info.run_id
        _describe(api, run_id, params, made)
        (folder / UNFINISHED).write_text(json.dumps({"uri": uri, "run_id": run_id}), encoding="utf-8")
    else:
        api.update_run(run_id, status="RUNNING")
        for name, value in tags.items():
            api.set_tag(run_id, name, value)
    try:
        with _watched_machine(uri, run_id):
            yield Tracker(uri=uri, run_id=run_id, model_id=_model_of(api, profile, stage, made))
    except BaseException:
        api.set_terminated(run_id, "FAILED")
        raise
    api.set_terminated(run_id, "FINISHED")
    (folder / UNFINISHED).unlink()
    if parent and PARENT_VARIABLE not in os.environ:
        api.set_terminated(parent, "FINISHED")  # nobody else ends it; the next stage of the same repro moves its end


def _describe(api: MlflowClient, run_id: str, params: Mapping[str, Any], made: Made) -> None:
    """Log a stage's params, and its inputs as datasets."""
    from mlflow.entities import Param

    values = [Param(name, str(value)[:VALUE_LIMIT]) for name, value in flatten(params)]
    for start in range(0, len(values), BATCH_LIMIT):
        api.log_batch(run_id, params=values[start : start + BATCH_LIMIT])
    api.log_inputs(run_id, [_dataset(path, digest) for path, digest in made.inputs.items()])


def _dataset(path: str, digest: str) -> DatasetInput:
    """An input as MLflow knows it; what DVC tracks has DVC's md5 (its folders' end in .dir), the rest our sha256."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = "dvc.md5" if len(digest.removesuffix(".dir")) == 32 else "sha256"
    tags = [InputTag("mlflow.data.context", "input"), InputTag(kind, digest)]
    return DatasetInput(Dataset(path, digest[:DIGEST_LIMIT], "local", json.dumps({"uri": path})), tags)


def note(stage: str, made: Made, tags: Mapping[str, str]) -> str:
    """Markdown for a run's page: what the stage is made from, and how to make it again."""
    rows = "".join(f"| `{path}` | {digest[:8]} |\n" for path, digest in made.inputs.items())
    commit = tags.get("mlflow.source.git.commit")
    again = (f"git checkout {commit[:12]}\n" if commit else "") + f"dvc repro {os.environ.get('DVC_STAGE', stage)}\n"
    changed = " (and the changes of that time, which were not committed)" if tags.get("git_dirty") == "true" else ""
    return (
        f"DVC stage `{stage}`, key `{made.key}`.\n\n| made from | digest |\n| --- | --- |\n{rows}\n"
        f"The same again{changed}:\n```\n{again}```\n"
    )


def model_name(name: str) -> str:
    """``name`` in the characters that MLflow takes for a model."""
    return re.sub("[^A-Za-z0-9_-]", "-", name)


@contextmanager
def _not_essential(what: str) -> Iterator[None]:
    """What MLflow cannot take of ``what`` is a line on stderr: a stage's work is worth more."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        print(f"MLflow does not keep {what}: {error}", file=sys.stderr, flush=True)


@contextmanager
def _watched_machine(uri: str, run_id: str) -> Iterator[None]:
    """Meanwhile what this machine's CPUs, memory, disk, network and NVIDIA GPUs do goes into the run, as system/..."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # each beginning and end, what a GPU cannot tell
    with ExitStack() as watching:
        try:
            monitor = SystemMetricsMonitor(run_id, SYSTEM_SECONDS, resume_logging=True, tracking_uri=uri)
            watching.callback(monitor.finish)
            monitor.start()
        except Exception as error:  # a container that hides its network or disks from us
            print(f"this machine is not watched: {error}", file=sys.stderr, flush=True)
        yield


def _models(api: MlflowClient, experiment: str, name: str) -> Iterator[LoggedModel]:
    """The models called ``name``, the newest first."""
    order, token = [{"field_name": "creation_timestamp", "ascending": False}], None
    while True:
        page = api.search_logged_models([experiment], f"name = '{model_name(name)}'", order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _model_of(api: MlflowClient, profile: str, stage: str, made: Made) -> str | None:
    """The MLflow model that ``stage`` is about: it is called like the stage's item, and a stage upstream made it."""
    _, _, item = stage.partition("@")
    keys = set(made.upstream.values())
    if item and keys:
        with _not_essential("which model this is about"):
            for model in _models(api, experiment_id(api, profile), item):
                if model.tags.get("key") in keys:
                    return str(model.model_id)
    return None


def _unfinished_run(api: MlflowClient, uri: str, folder: Path) -> str | None:
    """The run that ``folder`` knows of, if this store has it."""
    from mlflow.exceptions import MlflowException

    path = folder / UNFINISHED
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["uri"] != uri or api.get_run(known["run_id"]).info.lifecycle_stage != "active":
            return None
    except (FileNotFoundError, ValueError, MlflowException):  # none, cut short by a kill, or no longer in the store
        return None
    return str(known["run_id"])


def git_tags(root: Path) -> dict[str, str]:
    """Commit and dirty flag of the working tree; empty outside git."""
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git_dirty": str(bool(dirty.strip())).lower()}


def _repro_parent(api: MlflowClient, profile: str, root: Path) -> str | None:
    """The parent run of the dvc process above this stage, found by its pid and start time, or made."""
    above = [p for p in psutil.Process().parents() if any(Path(part).name == "dvc" for part in p.cmdline()[:3])]
    if not above:
        return None
    process = f"{above[-1].pid}@{above[-1].create_time():.2f}"
    found = api.search_runs([experiment_id(api, profile)], f"tags.dvc_process = '{process}'", max_results=1)
    return (
        found[0].info.run_id
        if found
        else start_parent("repro", profile, root, {"dvc_process": process, "mlflow.note.content": REPRO_NOTE})
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number in nested mappings and in the lists they hold."""
    for name, value in flatten(results):
        entries = enumerate(value) if isinstance(value, list | tuple) else [(0, value)]
        for step, entry in entries:
            for inner, number in flatten({name: entry}):
                if isinstance(number, int | float):
                    yield inner, number, step
