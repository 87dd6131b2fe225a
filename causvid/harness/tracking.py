"""Record stages in MLflow: each executed stage is a child run, each flow or ``dvc repro`` is its parent run.

Each profile is an MLflow experiment. A stage writes to a journal (``journal.py``), and another process sends this
journal to MLflow (``sender.py``), so that no failure of MLflow's store can stop a stage. No stage reads results from
MLflow.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from causvid.harness.journal import FOLDER, Header, Journal, Run, journals, now
from causvid.harness.mlflow_store import VARIABLE
from causvid.harness.project import work_root
from causvid.harness.sender import sending

PARENT_VARIABLE = "CAUSVID_PARENT_RUN_ID"
VALUE_LIMIT = 6000  # maximum number of characters that MLflow stores of a parameter
REPRO_NOTE = "One `dvc repro`. The stages that it executed are the child runs of this run."
FLOWS = ("flow", "runs")  # work folder of flows


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
    """

    key: str
    inputs: Mapping[str, str]
    upstream: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A handle on one MLflow run. The handle is picklable, so that rank 0 in a Ray worker can log to the stage's run.

    The methods write only to the work folder. They raise OSError if the disk of the work folder is full.
    Failures of MLflow raise no error.
    """

    journal: Journal

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


def start_parent(name: str, profile: str, root: Path, tags: Mapping[str, str]) -> str:
    """Begin the run of a flow. MLflow creates the run together with the run of the first stage.

    Returns:
        Token of the run, which stages read from ``CAUSVID_PARENT_RUN_ID``.
    """
    run = Run(token=uuid.uuid4().hex, name=name, profile=profile, tags={**tags, **git_tags(root)}, started=now())
    header = Header(run=run, parent=None, store=os.environ.get(VARIABLE) or None, needs_child=True)
    Journal.begin(work_root(root).joinpath(*FLOWS), header)
    return run.token


def end_parent(token: str, status: str, note: str, root: Path) -> Journal:
    """End the run of a flow, with a ``note`` for the page of the run. The caller must send the returned journal."""
    journal = _flow(token, root)
    if note:
        journal.append("tags", values={"mlflow.note.content": note})
    journal.append("end", status=status, ends_parent=False)
    journal.finish()
    return journal


@contextmanager
def child_run(
    stage: str, profile: str, root: Path, params: Mapping[str, Any], made: Made, folder: Path
) -> Iterator[Tracker]:
    """Record the run of one executed stage as a child of the flow or ``dvc repro``. An exception makes the run FAILED.

    An interrupted stage continues its run, whose journal is in ``folder``, below the new parent. The results of
    ``stage``@x are logged for the model x, if an upstream stage produced this model.
    """
    named = os.environ.get(PARENT_VARIABLE)
    parent = _named_parent(named, root) if named else _repro_parent(profile, root)
    tags = {"dvc_stage": stage, "key": made.key, "upstream": json.dumps(made.upstream), **git_tags(root)}
    tags |= {"mlflow.parentRunId": named} if named and not parent else {}  # id of a run that another program began
    tags["mlflow.note.content"] = note(stage, made, tags)
    journal = _unfinished(folder)
    if journal is None:
        run = Run(token=uuid.uuid4().hex, name=stage, profile=profile, tags=tags, started=now())
        header = Header(run=run, parent=parent, store=os.environ.get(VARIABLE) or None, needs_child=False)
        journal = Journal.begin(folder, header)
        journal.append("params", values={name: str(value)[:VALUE_LIMIT] for name, value in flatten(params)})
        journal.append("inputs", values=dict(made.inputs))
    else:
        journal.append("resume", tags=tags, parent=asdict(parent) if parent else None)
    with sending(journal, root):
        try:
            yield Tracker(journal=journal)
        except BaseException:
            with suppress(OSError):  # if the disk is full, the stage reports the error
                journal.append("end", status="FAILED", ends_parent=False)
            raise
        # Each stage ends the run of the `dvc repro`. The next stage of the same `dvc repro` sets a later end time.
        journal.append("end", status="FINISHED", ends_parent=parent is not None and not named)
        journal.finish()


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


def git_tags(root: Path) -> dict[str, str]:
    """Return the commit and the dirty flag of the working tree; an empty mapping outside of a git repository."""
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git_dirty": str(bool(dirty.strip())).lower()}


def _flow(token: str, root: Path) -> Journal:
    return Journal(work_root(root).resolve().joinpath(*FLOWS, FOLDER, token))


def _named_parent(token: str, root: Path) -> Run | None:
    """Return the run of the flow whose token is ``token``; None if no flow has this token."""
    journal = _flow(token, root)
    return journal.header.run if journal.exists else None


def _repro_parent(profile: str, root: Path) -> Run | None:
    """Return the run of the dvc process that started this stage, identified by its pid and start time."""
    above = [p for p in psutil.Process().parents() if any(Path(part).name == "dvc" for part in p.cmdline()[:3])]
    if not above:
        return None
    process = f"{above[-1].pid}@{above[-1].create_time():.2f}"
    tags = {"dvc_process": process, "mlflow.note.content": REPRO_NOTE, **git_tags(root)}
    return Run(token=f"{socket.gethostname()}:{process}", name="repro", profile=profile, tags=tags, started=now())


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield the name, value and step of every number in nested mappings and lists."""
    for name, value in flatten(results):
        entries = enumerate(value) if isinstance(value, list | tuple) else [(0, value)]
        for step, entry in entries:
            for inner, number in flatten({name: entry}):
                if isinstance(number, int | float):
                    yield inner, number, step
