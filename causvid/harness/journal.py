"""The journal of one MLflow run: every event is appended to a file in the work folder before it is sent.

A stage writes only to its journal, so no state of MLflow's store can stop it. ``sender.py`` sends the events in the
order of their times and records its progress.

    run.json              name, tags and parent of the run
    rows/<writer>.jsonl   metrics, params, tags, status; one file for each process that writes
    files/<writer>.jsonl  artifacts; separate, so that metrics are sent while an artifact store is unavailable
    files/<copy>/<name>   copies of the artifacts
    sent.json             the run's id in MLflow, and the offset in each file up to which MLflow has the events
    finished              an empty file: the stage ended normally, and no event follows
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from causvid.runtime.files import write_json

FOLDER = "mlflow"  # in a work folder; a journal is a folder in it
ROWS, FILES = "rows", "files"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to create in MLflow.

    Attributes:
        token: A unique string. It becomes a tag of the run, by which a sender finds a run that was created before.
        name: The run's name.
        profile: The profile; the experiment is named after it.
        tags: Further tags.
        started: Milliseconds since 1970.
    """

    token: str
    name: str
    profile: str
    tags: Mapping[str, str]
    started: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description of a journal's run.

    Attributes:
        run: The run that the events belong to.
        parent: The parent run, or None.
        store: The value of ``MLFLOW_TRACKING_URI`` when the run began; None means the project's own store.
        needs_child: Whether the run is created only together with a child. A flow that executed no stage has no run.
    """

    run: Run
    parent: Run | None
    store: str | None
    needs_child: bool


@dataclass
class Sent:
    """The progress of the sender.

    Attributes:
        run_id: The run's id in MLflow; None before the run is created.
        offsets: For each file of events, the number of bytes that MLflow has.
    """

    run_id: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)


class Entry(NamedTuple):
    """An event, its file, and the offset of its end."""

    event: dict[str, Any]
    file: str
    end: int


@dataclass(frozen=True)
class Journal:
    """A folder of events. It pickles as its path, so that a rank in another process writes to the same run."""

    folder: Path

    @classmethod
    def begin(cls, work: Path, header: Header) -> Journal:
        """Create a journal below the work folder ``work``."""
        journal = cls(work.resolve() / FOLDER / header.run.token)
        for lane in (ROWS, FILES):
            (journal.folder / lane).mkdir(parents=True)
        write_json(journal.folder / "run.json", asdict(header))
        return journal

    @property
    def header(self) -> Header:
        """The description of the run."""
        values = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        parent = values.pop("parent")
        return Header(run=Run(**values.pop("run")), parent=Run(**parent) if parent else None, **values)

    def append(self, kind: str, *, lane: str = ROWS, **values: Any) -> None:
        """Add an event of ``kind`` with the current time.

        Raises:
            OSError: The event cannot be written, for example because the disk is full.
        """
        record = json.dumps({"kind": kind, "time": now(), **values})
        # The first line break ends a previous record that a full disk cut short.
        with (self.folder / lane / f"{_writer(os.getpid())}.jsonl").open("ab") as file:
            file.write(f"\n{record}\n".encode())

    def append_file(self, path: Path, folder: str) -> None:
        """Add the artifact ``path``, for ``folder`` of the run's artifacts. The file may change afterwards."""
        copy = f"{FILES}/{uuid.uuid4().hex}/{path.name}"
        (self.folder / copy).parent.mkdir()
        shutil.copyfile(path, self.folder / copy)
        self.append("artifact", lane=FILES, copy=copy, folder=folder)

    def entries(self, lane: str, offsets: Mapping[str, int]) -> Iterator[Entry]:
        """Yield the events of ``lane`` after ``offsets``, in the order of their times."""
        files = sorted((self.folder / lane).glob("*.jsonl"))
        of_each = [_read(file, f"{lane}/{file.name}", offsets) for file in files]
        return heapq.merge(*of_each, key=lambda entry: entry.event["time"])

    def finish(self) -> None:
        """Declare that no event follows. The sender removes the journal when MLflow has all events."""
        (self.folder / "finished").touch()

    @property
    def exists(self) -> bool:
        """Whether the journal has not been removed."""
        return (self.folder / "run.json").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the stage ended normally, so that no event follows."""
        return (self.folder / "finished").is_file()

    @property
    def is_waiting(self) -> bool:
        """Whether there are events that MLflow does not have."""
        offsets = self.sent().offsets
        return any(True for lane in (ROWS, FILES) for _ in self.entries(lane, offsets))

    def sent(self) -> Sent:
        """The sender's progress."""
        try:
            return Sent(**json.loads((self.folder / "sent.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Sent()

    def keep(self, sent: Sent) -> None:
        """Save the sender's progress."""
        write_json(self.folder / "sent.json", asdict(sent))

    def lock(self, *, blocking: bool) -> FileLock:
        """Return the lock of the process that sends the events. It is beside the folder, which may be removed."""
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"), blocking=blocking)

    def remove(self) -> None:
        """Delete the journal. The caller holds the lock."""
        (self.folder / "run.json").unlink()  # first: a folder without this file is no journal
        shutil.rmtree(self.folder)
        self.folder.with_name(f"{self.folder.name}.lock").unlink(missing_ok=True)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def journals(work: Path) -> list[Journal]:
    """Return all journals in the work folder ``work``."""
    return [Journal(page.parent) for page in sorted(work.resolve().glob(f"{FOLDER}/*/run.json"))]


@cache
def _writer(pid: int) -> str:
    """Return the name of this process's files. Names sort in the order of the processes' first events."""
    return f"{time.time_ns():020d}-{pid}-{uuid.uuid4().hex[:8]}"


def _read(path: Path, name: str, offsets: Mapping[str, int]) -> Iterator[Entry]:
    end = offsets.get(name, 0)
    with path.open("rb") as file:
        file.seek(end)
        for line in file:
            if not line.endswith(b"\n"):  # it is being written
                return
            end += len(line)
            try:
                event = json.loads(line)
            except ValueError:  # an empty line, or a record that a kill or a full disk cut short
                continue
            yield Entry(event, name, end)
