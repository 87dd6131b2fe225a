"""Send the events of a journal to MLflow in the order of their times, and each event only once.

After a failure, sending continues with the event that failed. If the process dies after MLflow has stored an event and
before the progress is saved, this event is sent twice. The second copy has no effect: MLflow stores metrics with equal
time, step and value only once, and other events replace the earlier event.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from causvid.harness.events import (
    METRICS,
    Event,
    Metrics,
    log_inputs,
    log_model,
    log_note,
    log_params,
    log_tags,
    model_of,
)
from causvid.harness.journal import FILES, ROWS, Entry, Journal, Run, Sent
from causvid.harness.mlflow_store import client, experiment_id, own_uri, set_table
from causvid.harness.project import work_root

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TOKEN = "causvid_run"  # name of the tag with which a run is searched
PARENT = "mlflow.parentRunId"
TOGETHER = 50  # maximum number of metric events in one request
LOGGED = {"params": log_params, "inputs": log_inputs, "tags": log_tags, "model": log_model}


class Delivery:
    """Sends the events of one journal. Each call sends the events that were added since the last call."""

    def __init__(self, journal: Journal, root: Path) -> None:
        """Prepare to send ``journal`` of the project in ``root``. No request to MLflow is made yet."""
        self.journal, self.root, self.header = journal, root, journal.header
        self.uri = self.header.store or own_uri(root)
        self.refused: set[str] = set()  # kinds of events whose refusal was already printed
        self.known = False  # whether the store has confirmed that the run exists
        self._start_over(journal.sent())

    def __call__(self) -> None:
        """Send all new events.

        Raises:
            Exception: MLflow or its store does not accept an event now. The next call continues with this event.
        """
        from mlflow.exceptions import MlflowException

        if self.known and not self.journal.is_waiting:
            return
        self.api: MlflowClient = client(self.uri)
        try:
            self._send_all()
        except MlflowException:
            if not self.known or self._is_active():
                raise
            self.known = False  # the run was deleted
            self._send_all()

    def _start_over(self, sent: Sent) -> None:
        """Restart at the first event of the journal. ``sent`` is the progress of the sender."""
        self.sent = sent
        self.read: dict[str, int] = {}  # file offsets up to which the next two attributes are complete
        self.metrics = Metrics()
        self.notes: dict[str, str] = {}

    def _send_all(self) -> None:
        if not self.known:
            self._find_run()
        if self.known:
            for lane in (ROWS, FILES):
                for batch in _batches(self.journal.entries(lane, self.read)):
                    self._send(batch)

    def _find_run(self) -> None:
        """Find or create the run in the store. A deleted run is created again with all events."""
        found = self.sent.run_id if self.sent.run_id and self._is_active() else None
        if found is None:
            found = self._id_of(self.header.run, self.header.parent, create=not self.header.needs_child)
            if found != self.sent.run_id:
                self._start_over(Sent(found))
                self.journal.keep(self.sent)
        self.known = found is not None

    def _is_active(self) -> bool:
        """Return whether the run exists in the store and is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self.api.get_run(self.sent.run_id).info.lifecycle_stage) == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _id_of(self, run: Run, parent: Run | None, *, create: bool = True) -> str | None:
        """Search the id of ``run`` with its token. If ``create``, a missing run is created below ``parent``."""
        experiment = self._experiment(run)
        found = self._by_token(experiment, run)
        if found or not create:
            return found
        above = {PARENT: self._id_of(parent, None)} if parent else {}
        work = work_root(self.root)
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "mlflow.lock"):  # without this lock, two senders would create two runs
            found = self._by_token(experiment, run)
            if found is None:
                tags = {**run.tags, **above, TOKEN: run.token}
                made = self.api.create_run(experiment, start_time=run.started, run_name=run.name, tags=tags)
                found = str(made.info.run_id)
        return found

    def _experiment(self, run: Run) -> str:
        return experiment_id(self.api, self.uri, run.profile, self.root)

    def _by_token(self, experiment: str, run: Run) -> str | None:
        found = self.api.search_runs([experiment], f"tags.{TOKEN} = '{run.token}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _send(self, batch: Sequence[Entry]) -> None:
        """Send the events that MLflow does not have, and save the progress."""
        fresh = [entry for entry in batch if entry.end > self.sent.offsets.get(entry.file, 0)]
        if fresh:
            self._apply([entry.event for entry in fresh])
            self.sent.offsets |= {entry.file: entry.end for entry in fresh}
            self.journal.keep(self.sent)
        for event, file, end in batch:
            self.metrics.add(event)
            if event["kind"] == "note":
                self.notes[event["part"]] = event["text"]
            self.read[file] = end

    def _apply(self, events: Sequence[Event]) -> None:
        """Send events. Events that MLflow rejects permanently are skipped, with one line on stderr for each kind."""
        from mlflow.exceptions import MlflowException

        kind = events[0]["kind"]
        final = {"INVALID_PARAMETER_VALUE"} | ({"ENDPOINT_NOT_FOUND"} if kind == "model" else set())
        try:
            self._log(events)
        except MlflowException as error:
            if error.error_code not in final or not self._is_active():
                raise
            if len(events) == 1:
                self._refuse(kind, error)
            else:
                for event in events:
                    self._apply([event])

    def _log(self, events: Sequence[Event]) -> None:
        event, run_id = events[0], self.sent.run_id
        assert run_id
        if event["kind"] in METRICS:
            self.metrics.log(self.api, run_id, events, self._model)
        elif event["kind"] in LOGGED:
            LOGGED[event["kind"]](self.api, run_id, event)
        elif event["kind"] == "artifact":
            self.api.log_artifact(run_id, str(self.journal.folder / event["copy"]), event["folder"])
        elif event["kind"] == "note":
            log_note(self.api, run_id, {**self.notes, event["part"]: event["text"]})
        elif event["kind"] == "table":
            set_table(self.api, self._experiment(self.header.run), event["metrics"])
        elif event["kind"] == "running":
            self.api.update_run(run_id, status="RUNNING")
        elif event["kind"] == "resume":
            parent = Run(**event["parent"]) if event["parent"] else None
            above = {PARENT: self._id_of(parent, None)} if parent else {}
            log_tags(self.api, run_id, {"values": {**event["tags"], **above}})
        else:
            assert event["kind"] == "end", event
            self.api.set_terminated(run_id, event["status"], event["time"])

    def _model(self) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            return model_of(self.api, self._experiment(self.header.run), self.header.run.tags)
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            self._refuse("model", error)  # an old server does not know models
            return None

    def _refuse(self, kind: str, error: Exception) -> None:
        if kind not in self.refused:
            self.refused.add(kind)
            print(f"MLflow refuses {kind} of {self.header.run.name}: {first_line(error)}", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    """Return the first line of an error message, without the SQL or the response that MLflow appends."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Group consecutive metric events into batches. Every other event is a separate batch."""
    batch: list[Entry] = []
    for entry in entries:
        alone = entry.event["kind"] not in METRICS
        if batch and (alone or len(batch) == TOGETHER):
            yield batch
            batch = []
        batch.append(entry)
        if alone:
            yield batch
            batch = []
    if batch:
        yield batch
