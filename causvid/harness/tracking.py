"""Record stages in MLflow: each executed stage is a child run, each flow or ``dvc repro`` is its parent run.

Each profile is an MLflow experiment. A stage writes to a journal (``journal.py``), and another process sends this
journal to MLflow (``sender.py``), so that no failure of MLflow's store can stop a stage. No stage reads results from
MLflow.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from causvid.harness import parents
from causvid.harness.journal import Header, Journal, Run, journals, now
from causvid.harness.mlflow_store import VARIABLE
from causvid.harness.parents import VALUE_LIMIT, flatten, git_tags
from causvid.harness.processes import Owner, this_process
from causvid.harness.sender import sending

PARENT_VARIABLE = "CAUSVID_PARENT_RUN_ID"
BAD = ("FAILED", "KILLED")  # statuses that a parent run keeps


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Params section ``watch``: previews and checkpoints of a training. The results of a stage do not depend on it.

    Attributes:
        samples_every: Number of steps between two preview videos; 0 = no previews.
        samples: Number of prompts in a preview video.
        keep_checkpoints_every: Checkpoints after a multiple of this number of steps are kept; None = only the newest.
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
    """The origin of a stage's result.

    Attributes:
        key: Key of the stage's work, which depends on everything that determines the result.
        inputs: Checksums of the inputs, keyed by path.
        upstream: Keys of the stages that produced the inputs, keyed by the name of the stage.
        unchanged: Keys of all stages of the project whose results are up to date, keyed by the name of the stage.
    """

    key: str
    inputs: Mapping[str, str]
    upstream: Mapping[str, str]
    unchanged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A handle on one MLflow run. The handle is picklable, so that rank 0 in a Ray worker can log to the stage's run.

    The methods write only to the work folder. They raise OSError if the disk of the work folder is full.
    Failures of MLflow raise no error.

    Attributes:
        journal: Journal of the stage's run.
        parent: Journal of the parent run; None if there is none, or if another program began it.
    """

    journal: Journal
    parent: Journal | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log a row of a curve. If a name and step are logged twice, MLflow gets only the first value."""
        self.journal.append("metrics", values={name: float(value) for name, value in metrics.items()}, step=step)

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Log the numbers in ``results``. Nested keys become dotted names; list entries get the steps 0, 1, ..."""
        self.journal.append("results", values=[(name, float(value), step) for name, value, step in numbers(results)])

    def log_artifact(self, path: Path, folder: str) -> None:
        """Copy a file into the run's artifacts."""
        self.journal.append_file(path, folder)

    def log_model(self, name: str, path: Path, key: str) -> None:
        """Register the model in folder ``path`` as ``name``, once per run. MLflow does not store its files."""
        self.journal.append("model", name=name, path=path.as_posix(), key=key)

    def log_headline(self, numbers: Mapping[str, float], text: str, samples: Iterable[Path]) -> None:
        """Add the headline numbers, a text and videos to the parent run. Without a parent run, do nothing.

        Args:
            numbers: The headline numbers, which become metrics, and columns of the table of runs. The table is sorted
                by the first of them.
            text: Sentences for the page of the run.
            samples: Videos. Each becomes an artifact in ``samples/`` with the name of its folder.
        """
        if self.parent is None:
            return
        self.parent.append("results", values=[(name, float(value), 0) for name, value in numbers.items()])
        self.parent.append("table", metrics=list(numbers))
        self.parent.append("note", part="results", text=text)
        for path in samples:
            self.parent.append_file(path, f"samples/{path.absolute().parent.name}")


def start_parent(flow: str, root: Path, tags: Mapping[str, str]) -> str:
    """Begin the run of a flow, whose process is the parent of this process.

    Returns:
        Token of the run, which stages read from ``CAUSVID_PARENT_RUN_ID``.
    """
    return parents.begin_flow(flow, root, Owner.of(psutil.Process(os.getppid())), tags)


def end_parent(token: str, status: str, note: str, root: Path) -> Journal:
    """End the run of a flow, with a ``note`` for the page of the run. The caller must send the returned journal."""
    journal = parents.journal_of(token, root)
    if journal is None:
        raise ValueError(f"--token is {token}, but no flow of this project has this token")
    if note:
        journal.append("note", part="stages", text=note)
    journal.append("end", status=status)
    journal.finish()
    return journal


@contextmanager
def child_run(
    stage: str, profile: str, root: Path, params: Mapping[str, Any], made: Made, folder: Path
) -> Iterator[Tracker]:
    """Record the run of one executed stage as a child of the flow or ``dvc repro``.

    An interrupt makes the run and its parent run KILLED, another exception makes them FAILED. An interrupted stage
    continues its run, whose journal is in ``folder``, below the new parent. The results of ``stage``@x are logged for
    the model x, if an upstream stage produced this model.
    """
    named = os.environ.get(PARENT_VARIABLE)
    parent = parents.journal_of(named, root) if named else parents.begin_repro(profile, root)
    tags = {"dvc_stage": stage, "key": made.key, "upstream": json.dumps(made.upstream), **git_tags(root)}
    tags["unchanged"] = json.dumps(made.unchanged)
    tags |= {"mlflow.parentRunId": named} if named and not parent else {}  # id of a run that another program began
    tags["mlflow.note.content"] = note(stage, made, tags)
    journal, above = _unfinished(folder), parent.header.run if parent else None
    if journal is None:
        run = Run(token=uuid.uuid4().hex, name=stage, profile=profile, tags=tags, started=now())
        header = Header(run=run, parent=above, store=os.environ.get(VARIABLE) or None, needs_child=False)
        journal = Journal.begin(folder, header)
        journal.append("params", values={name: str(value)[:VALUE_LIMIT] for name, value in flatten(params)})
        journal.append("inputs", values=dict(made.inputs))
    else:
        journal.append("resume", tags=tags, parent=asdict(above) if above else None)
    journal.append("running", owner=this_process())
    with sending(journal, root), _parent_state(parent, is_flow=bool(named)):
        try:
            yield Tracker(journal=journal, parent=parent)
        except BaseException as error:
            with suppress(OSError):  # if the disk is full, the stage reports the error
                journal.append("end", status=_status_of(error))
            raise
        journal.append("end", status="FINISHED")
        journal.finish()


@contextmanager
def _parent_state(parent: Journal | None, *, is_flow: bool) -> Iterator[None]:
    """Record in the journal of a parent run that a stage begins and ends.

    Each stage ends the parent run of its ``dvc repro``, and the next stage opens this run again. After a stage has
    failed, ``dvc repro --keep-going`` may run other stages, but the parent run stays FAILED. A flow ends its parent run
    itself. If the flow is stopped, its first stopped stage ends the parent run at once.
    """
    if parent is None:
        yield
        return
    before = parent.last()
    parent.append("running", owner=before.owner)
    try:
        yield
    except BaseException as error:
        if not is_flow or _status_of(error) == "KILLED":
            with suppress(OSError):
                parent.append("end", status=_status_of(error))
        raise
    if not is_flow:
        parent.append("end", status=before.status if before.status in BAD else "FINISHED")


def _status_of(error: BaseException) -> str:
    """Return the status of a run that ``error`` ended. Handlers of signals exit with 128 + the number of the signal."""
    stopped = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    return "KILLED" if stopped or isinstance(error, KeyboardInterrupt) else "FAILED"


def note(stage: str, made: Made, tags: Mapping[str, str]) -> str:
    """Return Markdown for a run's page: the inputs of the stage, and the commands that repeat the stage."""
    rows = "".join(f"| `{path}` | {digest[:8]} |\n" for path, digest in made.inputs.items())
    commit = tags.get("mlflow.source.git.commit")
    again = (f"git checkout {commit[:12]}\n" if commit else "") + f"dvc repro {os.environ.get('DVC_STAGE', stage)}\n"
    changed = " (and the changes of that time, which were not committed)" if tags.get("git_dirty") == "true" else ""
    return (
        f"DVC stage `{stage}`, key `{made.key}`.\n\n| made from | digest |\n| --- | --- |\n{rows}\n"
        f"The same again{changed}:\n```\n{again}```\n"
    )


def _unfinished(folder: Path) -> Journal | None:
    """Return the journal of the interrupted stage, if its run belongs to the current store."""
    store = os.environ.get(VARIABLE) or None
    found = [journal for journal in journals(folder) if not journal.is_finished and journal.header.store == store]
    return max(found, key=lambda journal: journal.header.run.started, default=None)


def numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield the name, value and step of every number in nested mappings and lists."""
    for name, value in flatten(results):
        entries = enumerate(value) if isinstance(value, list | tuple) else [(0, value)]
        for step, entry in entries:
            for inner, number in flatten({name: entry}):
                if isinstance(number, int | float):
                    yield inner, number, step
