"""The frame of every stage: params, key, work folder, MLflow run, metrics and error messages."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causvid import params as params_file
from causvid.compute.parallel import Compute
from causvid.harness import recorded, tracking, work
from causvid.harness.inputs import checksums, located, value_of
from causvid.harness.work import Origin
from causvid.params import PathRule
from causvid.runtime import files

COLLECTS = (700, 10, 10)  # Python's default thresholds of garbage collection, which stages/__init__.py raises


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One execution of one stage.

    Attributes:
        name: The stage's name.
        work: Folder of its unfinished work.
        origin: Everything that decides its result.
        tracker: Its MLflow run.
        compute: Params section ``compute``.
        watch: Params section ``watch``.
        params: The sections that it reads, by name. Paths in them can be opened from the stage's folder.
        results: Its metrics so far.
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
        """Put a finished file or folder where DVC expects it, in one rename.

        The folder of a model is logged in MLflow.
        """
        files.publish(finished, out)
        if (out / "config.json").is_file():  # as diffusers and transformers write them
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
) -> Iterator[StageRun]:
    """Run the body as a stage.

    A ValueError (a mistake that the user can correct), a full disk, or another process at the same work ends the
    process with one sentence and exit code 1.

    Args:
        name: The stage's name.
        params: The params file.
        sections: Types of its sections and entries that the stage reads, by name.
        inputs: Paths from the command line, outputs of earlier stages.
        metrics: The JSON file of results.
        item: The item of a stage that runs several times.
        paths: Entries of the params file that hold a path and are inputs as well.

    Yields:
        The run.
    """
    _die_with_parent()
    try:
        root = Path.cwd()
        everything, paths = params_file.read(params), paths or {}
        values = {name: params_file.lookup(everything, name, params) for name in sections}
        found = located(everything, paths, root)
        built = {
            name: params_file.build(kind, params_file.lookup(found, name, params), name=name)
            for name, kind in sections.items()
        }
        label = f"{name}@{item}" if item else name
        compute = params_file.build(Compute, everything["compute"], name="compute")
        watch = params_file.build(tracking.Watch, everything["watch"], name="watch")
        origin, upstream = _origin(name, {**values, "item": item}, everything, inputs, paths, root)
        made = tracking.Made(key=origin.key, inputs=origin.inputs, upstream=upstream)
        with (
            work.work_folder(name, origin.key, root=root) as folder,
            tracking.child_run(label, everything["profile"], root, values, made, folder) as tracker,
        ):
            run = StageRun(
                name=name, work=folder, origin=origin, tracker=tracker, compute=compute, watch=watch, params=built
            )
            gc.set_threshold(*COLLECTS)
            started = time.monotonic()
            yield run
            tracker.log_metrics({"stage_seconds": time.monotonic() - started})
            files.write_json(metrics, {**run.results, "key": origin.key})
    except (ValueError, work.BusyError) as error:
        sys.exit(f"{name}: {error}")
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
) -> tuple[Origin, dict[str, str]]:
    """Return the origin of a stage's result, and the keys of the upstream stages.

    Args:
        name: The stage's name.
        params: The sections of the params file that it reads.
        everything: The whole params file.
        inputs: Inputs from the command line.
        paths: Entries of the params file that hold a path and are inputs as well.
        root: The folder in which the stage runs.
    """
    # DVC has just verified the checksums that it recorded, so that these inputs need not be read again.
    lock = recorded.read_lock(root) if "DVC_STAGE" in os.environ else {}
    known, places = recorded.digests(lock), {entry: Path(value_of(everything, entry)) for entry in paths}
    unknown = {entry: rule for entry, rule in paths.items() if places[entry].as_posix() not in known}
    known |= checksums(everything, unknown, root)
    read = [*inputs, *places.values()]
    origin = work.stage_origin(name, params=params, inputs=read, known=known, root=root)
    return origin, recorded.upstream(lock, read, root)


def _disk_is_full(error: BaseException) -> bool:
    """Return whether a full disk caused ``error``. safetensors, LMDB and torch.save raise errors without the errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    hidden = (os.strerror(errno.ENOSPC), "unexpected pos", "mdb_txn_commit: Input/output error")
    return any(words in str(error) for words in hidden)


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when dvc dies (Linux only).

    An orphan would write into the folders of a rerun.
    """
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit("dvc is gone")
