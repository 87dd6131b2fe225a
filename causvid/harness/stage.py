"""Prepare and finish the run of a stage: params, key, work folder, MLflow run, metrics and error messages."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causvid import params as params_file
from causvid.compute.parallel import Compute
from causvid.harness import lines, outputs, recorded, tracking, work
from causvid.harness.inputs import checksums, located, value_of
from causvid.harness.work import Origin
from causvid.params import PathRule
from causvid.runtime import files


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """The run of a stage.

    Attributes:
        name: Name of the stage.
        work: Folder of unfinished work.
        origin: Everything that determines the result.
        tracker: Handle on the MLflow run.
        compute: Params section ``compute``.
        watch: Params section ``watch``.
        params: Sections that the stage reads, keyed by name. Paths in these sections are valid in the stage's folder.
        results: Metrics that were reported so far.
    """

    name: str
    work: Path
    origin: Origin
    tracker: tracking.Tracker
    compute: Compute
    watch: tracking.Watch
    params: Mapping[str, Any]
    results: dict[str, Any] = field(default_factory=dict)

    def publish(self, finished: Path, out: Path) -> None:
        """Move the file or folder ``finished`` by one rename to ``out``, the path in dvc.yaml.

        If the folder contains a model, the model is registered in MLflow.
        """
        files.publish(finished, out)
        if (out / "config.json").is_file():  # diffusers and transformers write this file into the folder of a model
            self.tracker.log_model(out.name, out, self.origin.key)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Add ``metrics`` to the metrics file of the stage, and log their numbers in MLflow."""
        self.results.update(metrics)
        self.tracker.log_results(metrics)


@contextmanager
def stage_run(
    name: str,
    *,
    params: Path,
    sections: Mapping[str, Any],
    inputs: Sequence[Path],
    metrics: Path,
    item: str | None = None,
    paths: Mapping[str, PathRule] | None = None,
    headline: Sequence[str] = (),
) -> Iterator[StageRun]:
    """Run the body of the ``with`` statement as a stage. Print one line when the stage has finished or was stopped.

    Three errors end the process with one sentence and exit code 1: a ValueError (a mistake that the user can correct),
    a full disk, and another process that does the same work.

    Args:
        name: Name of the stage.
        params: Path of the params file.
        sections: Types of the params sections and entries that the stage reads, keyed by name.
        inputs: Paths from the command line, which are outputs of earlier stages.
        metrics: Path of the JSON file of metrics.
        item: Item of a matrix stage.
        paths: Rules of other inputs, whose paths are in the params file, keyed by dotted name.
        headline: Format strings of the stage's main numbers, as in ``lines.finished``.

    Yields:
        The run of the stage.
    """
    label = f"{name}@{item}" if item else name
    with _reporting(name, label, params):
        root = Path.cwd()
        everything, paths = params_file.read(params), paths or {}
        values = {name: params_file.lookup(everything, name, params) for name in sections}
        found = located(everything, paths, root)
        built = {
            name: params_file.build(kind, params_file.lookup(found, name, params), name=name)
            for name, kind in sections.items()
        }
        compute = params_file.build(Compute, everything["compute"], name="compute")
        watch = params_file.build(tracking.Watch, everything["watch"], name="watch")
        origin, made = _origin(name, {**values, "item": item}, everything, inputs, paths, root)
        with (
            work.work_folder(name, origin.key, root=root) as folder,
            tracking.child_run(label, everything["profile"], root, values, made, folder) as tracker,
            outputs.kept(),
        ):
            run = StageRun(
                name=name, work=folder, origin=origin, tracker=tracker, compute=compute, watch=watch, params=built
            )
            started = time.monotonic()
            yield run
            seconds = time.monotonic() - started
            tracker.log_metrics({"stage_seconds": seconds})
            files.write_json(metrics, {**run.results, "key": origin.key})
            print(lines.finished(label, headline, run.results, seconds), file=sys.stderr, flush=True)


@contextmanager
def _reporting(name: str, label: str, params: Path) -> Iterator[None]:
    """End the process with one sentence if the body is stopped or raises an error that ``stage_run`` lists.

    Args:
        name: Name of the stage.
        label: Name of the stage with its item.
        params: Path of the params file.
    """
    try:
        yield
    except outputs.Stopped as stop:
        print(lines.stopped(label), file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)
    except (ValueError, work.BusyError) as error:
        sys.exit(f"{name}: {params_file.with_lines(error, params)}")
    except Exception as error:
        if not _disk_is_full(error):
            raise
        sys.exit(f"{name}: the disk is full ({error}); free some space and run the same command again: work is kept")


def _origin(
    name: str,
    params: Mapping[str, Any],
    everything: Mapping[str, Any],
    inputs: Sequence[Path],
    paths: Mapping[str, PathRule],
    root: Path,
) -> tuple[Origin, tracking.Made]:
    """Return the origin of a stage's result, and the record of this origin for MLflow.

    Args:
        name: Name of the stage.
        params: Sections of the params file that the stage reads.
        everything: Content of the whole params file.
        inputs: Paths from the command line, which are outputs of earlier stages.
        paths: Rules of other inputs, whose paths are in the params file, keyed by dotted name.
        root: Folder in which the stage runs.
    """
    # DVC has just verified the checksums in dvc.lock, so that these inputs need not be read again. This is not true for
    # a stage of another DVC project, the ablation.
    lock = recorded.read_lock(root) if "DVC_STAGE" in os.environ else {}
    verified = Path(os.environ.get("DVC_ROOT", root)).resolve() == root.resolve()
    known = recorded.digests(lock) if verified else {}
    places = {entry: Path(value_of(everything, entry)) for entry in paths}
    unknown = {entry: rule for entry, rule in paths.items() if places[entry].as_posix() not in known}
    known |= checksums(everything, unknown, root)
    read = [*inputs, *places.values()]
    origin = work.stage_origin(name, params=params, inputs=read, known=known, root=root)
    upstream, unchanged = recorded.upstream(lock, read, root), recorded.unchanged(lock, root)
    return origin, tracking.Made(key=origin.key, inputs=origin.inputs, upstream=upstream, unchanged=unchanged)


def _disk_is_full(error: BaseException) -> bool:
    """Return whether a full disk caused ``error``. The errors of safetensors, LMDB and torch.save have no errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    hidden = (os.strerror(errno.ENOSPC), "unexpected pos", "mdb_txn_commit: Input/output error")
    return any(words in str(error) for words in hidden)
