"""Send the events of a journal to an MLflow run, with one function for each kind of event."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel, Metric
    from mlflow.tracking import MlflowClient

METRICS = ("metrics", "results")  # kinds of events that become metrics in MLflow
BATCH_LIMIT = 100  # maximum number of parameters in a request to MLflow
METRICS_LIMIT = 1000  # maximum number of metrics in a request to MLflow
DIGEST_LIMIT = 36  # maximum number of characters in a dataset's digest in MLflow
NOTE = "mlflow.note.content"  # tag with the Markdown text on the page of a run
NOTE_PARTS = ("results", "run", "stages")
NOTE_LIMIT = 8000  # maximum number of characters of a tag in MLflow

Event = dict[str, Any]


class Metrics:
    """The metrics of a run that were already sent. Each step of a curve is sent only once.

    A training that was killed repeats the steps since the last checkpoint; only the first row of each step is sent.
    Results that repeat the last values of a curve are not sent.
    """

    def __init__(self) -> None:
        """Begin with no metrics."""
        self.steps: set[tuple[str, int]] = set()  # names and steps of curves
        self.names: set[str] = set()  # names of curves
        self.results: dict[tuple[str, int], str] = {}  # maps the name and step of a result to the last value

    def add(self, event: Event) -> None:
        """Record that the metrics of ``event`` were sent."""
        if event["kind"] == "metrics":
            self.steps |= {(name, event["step"]) for name in event["values"]}
            self.names |= event["values"].keys()
        elif event["kind"] == "results":
            self.results |= {(name, step): repr(value) for name, value, step in event["values"]}

    def log(self, api: MlflowClient, run_id: str, events: Sequence[Event], model: Callable[[], str | None]) -> None:
        """Send the metrics of ``events`` that were not sent before. ``model`` returns the id of the model."""
        metrics = list(self._new(events, model))
        for start in range(0, len(metrics), METRICS_LIMIT):
            api.log_batch(run_id, metrics=metrics[start : start + METRICS_LIMIT])

    def _new(self, events: Sequence[Event], model: Callable[[], str | None]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        now = Metrics()  # metrics of these events
        for event in events:
            if event["kind"] == "metrics":
                for name, value in event["values"].items():
                    if (name, event["step"]) not in self.steps and (name, event["step"]) not in now.steps:
                        yield Metric(name, value, event["time"], event["step"])
            else:
                for name, value, step in event["values"]:
                    last = now.results.get((name, step), self.results.get((name, step)))
                    if name not in self.names and name not in now.names and last != repr(value):
                        yield Metric(name, value, event["time"], step, model_id=model())
            now.add(event)


def log_params(api: MlflowClient, run_id: str, event: Event) -> None:
    """Send parameters."""
    from mlflow.entities import Param

    values = [Param(name, value) for name, value in event["values"].items()]
    for start in range(0, len(values), BATCH_LIMIT):
        api.log_batch(run_id, params=values[start : start + BATCH_LIMIT])


def log_inputs(api: MlflowClient, run_id: str, event: Event) -> None:
    """Send the checksums of a stage's inputs as MLflow datasets."""
    api.log_inputs(run_id, [_dataset(path, digest) for path, digest in event["values"].items()])


def log_tags(api: MlflowClient, run_id: str, event: Event) -> None:
    """Send tags."""
    for name, value in event["values"].items():
        api.set_tag(run_id, name, value)


def log_note(api: MlflowClient, run_id: str, parts: Mapping[str, str]) -> None:
    """Send the text on the page of a run, whose ``parts`` are joined in the order of ``NOTE_PARTS``."""
    api.set_tag(run_id, NOTE, "\n\n".join(parts[name] for name in NOTE_PARTS if name in parts)[:NOTE_LIMIT])


def log_model(api: MlflowClient, run_id: str, event: Event) -> None:
    """Register a model, once per run. MLflow does not store the files of the model."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    name = _model_name(event["name"])
    experiment = api.get_run(run_id).info.experiment_id
    ours = (model for model in _models(api, experiment, name) if model.source_run_id == run_id)
    tags = {MLFLOW_MODEL_IS_EXTERNAL: "true", "key": event["key"], "path": event["path"]}
    model = next(ours, None) or api.create_logged_model(experiment, name, run_id, tags)
    api.finalize_logged_model(model.model_id, "READY")


def model_of(api: MlflowClient, experiment: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the model that the results of ``stage``@x describe: model x of an upstream stage."""
    _, _, item = tags.get("dvc_stage", "").partition("@")
    keys = set(json.loads(tags.get("upstream", "{}")).values())
    if item and keys:
        for model in _models(api, experiment, _model_name(item)):
            if model.tags.get("key") in keys:
                return str(model.model_id)
    return None


def _models(api: MlflowClient, experiment: str, name: str) -> Iterator[LoggedModel]:
    """Yield the models with the name ``name``, newest first."""
    order, token = [{"field_name": "creation_timestamp", "ascending": False}], None
    while True:
        page = api.search_logged_models([experiment], f"name = '{name}'", order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _model_name(name: str) -> str:
    """Replace characters in ``name`` that MLflow does not accept in the name of a model."""
    return re.sub("[^A-Za-z0-9_-]", "-", name)


def _dataset(path: str, digest: str) -> DatasetInput:
    """Convert an input to an MLflow dataset. A digest with 32 digits is DVC's md5; longer digests are sha256."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = "dvc.md5" if len(digest.removesuffix(".dir")) == 32 else "sha256"
    tags = [InputTag("mlflow.data.context", "input"), InputTag(kind, digest)]
    return DatasetInput(Dataset(path, digest[:DIGEST_LIMIT], "local", json.dumps({"uri": path})), tags)
