"""MLflow: one experiment per profile, a parent run per flow or ``dvc repro``, a child run per executed stage.

A stage writes to a journal (``journal.py``), and another process sends the journal to MLflow (``sender.py``), so that
no failure of MLflow's store can stop a stage. No stage reads a result from MLflow.
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
VALUE_LIMIT = 6000  # characters MLflow stores of one parameter
REPRO_NOTE = "One `dvc repro`. The stages that it executed are the runs below this one."
FLOWS = ("flow", "runs")  # where flows have their work folder


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
    """The origin of a stage's result.

    Attributes:
        key: Key of the stage's work, which depends on everything that decides the result.
        inputs: Checksums of the inputs, by path.
        upstream: Keys of the stages that produced the inputs, by stage.
    """

    key: str
    inputs: Mapping[str, str]
    upstream: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A handle on one MLflow run. Small and picklable, so that rank 0 of a Ray worker can log into the stage's run.

    Its methods write only to the work folder. They raise OSError if its disk is full.
    Failures of MLflow raise no error.
    """

    journal: Journal

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log a row of a curve. MLflow gets the first row of each name and step."""
        self.journal.append("metrics", values={name: float(value) for name, value in metrics.items()}, step=step)

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Log the numbers in ``results``: nested ones by dotted names, the entries of a list at steps 0, 1, ..."""
        self.journal.append("results", values=[(name, float(value), step) for name, value, step in numbers(results)])

    def log_artifact(self, path: Path, folder: str) -> None:
        """Copy a file into the run's artifacts."""
        self.journal.append_file(path, folder)

    def log_model(self, name: str, path: Path, key: str) -> None:
        """Register the model in folder ``path`` as ``name``, once for this run. Its files stay in DVC."""
        self.journal.append("model", name=name, path=path.as_posix(), key=key)


def start_parent(name: str, profile: str, root: Path, tags: Mapping[str, str]) -> str:
    """Begin the run of a flow. It is created in MLflow together with the run of its first stage.

    Returns:
        The run's token, which stages get in ``CAUSVID_PARENT_RUN_ID``.
    """
    run = Run(token=uuid.uuid4().hex, name=name, profile=profile, tags={**tags, **git_tags(root)}, started=now())
    header = Header(run=run, parent=None, store=os.environ.get(VARIABLE) or None, needs_child=True)
    Journal.begin(work_root(root).joinpath(*FLOWS), header)
    return run.token


def end_parent(token: str, status: str, note: str, root: Path) -> Journal:
    """End the run of a flow, with a ``note`` for its page. Return its journal, which the caller sends."""
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
    """Record the run of one executed stage, below that of its flow or ``dvc repro``. It is FAILED if the body raises.

    A stage that was interrupted continues its run, whose journal is in ``folder``, below the new parent. Results of
    ``stage``@x belong to the model x, if an upstream stage made one.
    """
    named = os.environ.get(PARENT_VARIABLE)
    parent = _named_parent(named, root) if named else _repro_parent(profile, root)
    tags = {"dvc_stage": stage, "key": made.key, "upstream": json.dumps(made.upstream), **git_tags(root)}
    tags |= {"mlflow.parentRunId": named} if named and not parent else {}  # the id of a run that we did not begin
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
            with suppress(OSError):  # a full disk: the stage reports it
                journal.append("end", status="FAILED", ends_parent=False)
            raise
        # Each stage ends the run of its `dvc repro`; the next stage of the same repro sets a later end.
        journal.append("end", status="FINISHED", ends_parent=parent is not None and not named)
        journal.finish()


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


def _unfinished(folder: Path) -> Journal | None:
    """Return the journal of the interrupted stage, if its run belongs to the current store."""
    store = os.environ.get(VARIABLE) or None
    found = [journal for journal in journals(folder) if not journal.is_finished and journal.header.store == store]
    return max(found, key=lambda journal: journal.header.run.started, default=None)


def git_tags(root: Path) -> dict[str, str]:
    """Commit and dirty flag of the working tree; empty outside git."""
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git_dirty": str(bool(dirty.strip())).lower()}


def _flow(token: str, root: Path) -> Journal:
    return Journal(work_root(root).resolve().joinpath(*FLOWS, FOLDER, token))


def _named_parent(token: str, root: Path) -> Run | None:
    """Return the run of the flow with ``token``; None if ``token`` is the id of another run."""
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
