"""Write and read the journal of an MLflow run, which stores every event in the work folder before it is sent.

A stage writes only to the journal, so MLflow's store can never stop a stage. ``sender.py`` sends the events in the
order of their times, and saves the progress. A journal consists of these files:

    run.json              name, tags and parent of the run
    rows/<writer>.jsonl   metrics, params, tags, status; one file for each writing process
    files/<writer>.jsonl  artifacts, separate so that metrics are sent while an artifact store is unavailable
    files/<copy>/<name>   copies of the artifacts
    sent.json             the run's id in MLflow, and the offset in each file up to which MLflow has the events
    finished              an empty file that exists if the stage ended normally and no event follows
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

FOLDER = "mlflow"  # subfolder of a work folder, with one folder for each journal
ROWS, FILES = "rows", "files"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to create in MLflow.

    Attributes:
        token: A unique string, which becomes a tag of the run. A sender searches for an existing run with this tag.
        name: Name of the run.
        profile: Name of the profile, which is part of the name of the experiment.
        tags: Other tags of the run.
        started: Start time in milliseconds since 1970.
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
        run: The run of the events.
        parent: The parent run; None = no parent.
        store: The value of ``MLFLOW_TRACKING_URI`` when the run began; None means the project's own store.
        needs_child: Whether the run is created only together with a child run. Therefore a flow that executed no stage
            has no run.
    """

    run: Run
    parent: Run | None
    store: str | None
    needs_child: bool


@dataclass
class Sent:
    """The progress of the sender.

    Attributes:
        run_id: Id of the run in MLflow; None before the run is created.
        offsets: Number of bytes that were sent, for each file of events.
    """

    run_id: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)


class Last(NamedTuple):
    """The state of a run according to its journal.

    Attributes:
        status: RUNNING, or the status of the last end.
        owner: Fields of ``processes.Owner``, the process of the run; None if no event names the process.
        parent: The parent run; None = no parent.
        time: Time of the last event.
    """

    status: str
    owner: list[Any] | None
    parent: Run | None
    time: int


class Entry(NamedTuple):
    """An event, the file of the event, and the offset of the event's end in the file."""

    event: dict[str, Any]
    file: str
    end: int


@dataclass(frozen=True)
class Journal:
    """A folder of events. A pickled journal contains only the path, so that ranks write to the same run."""

    folder: Path

    @classmethod
    def begin(cls, work: Path, header: Header) -> Journal:
        """Create a journal below the work folder ``work``."""
        journal = cls(work.resolve() / FOLDER / header.run.token)
        for lane in (ROWS, FILES):
            (journal.folder / lane).mkdir(parents=True, exist_ok=True)  # a process may have died before run.json
        write_json(journal.folder / "run.json", asdict(header))
        return journal

    @property
    def header(self) -> Header:
        """Description of the run."""
        values = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        parent = values.pop("parent")
        return Header(run=Run(**values.pop("run")), parent=Run(**parent) if parent else None, **values)

    def append(self, kind: str, *, lane: str = ROWS, **values: Any) -> None:
        """Add an event of the kind ``kind``. Its time is the current time, unless ``values`` contain another time.

        Raises:
            OSError: The event cannot be written, for example because the disk is full.
        """
        record = json.dumps({"kind": kind, "time": now(), **values})
        # The first line break ends an incomplete previous record, which a full disk may have truncated.
        with (self.folder / lane / f"{_writer(os.getpid())}.jsonl").open("ab") as file:
            file.write(f"\n{record}\n".encode())

    def last(self) -> Last:
        """Return the state of the run after all events in the journal."""
        last = Last("RUNNING", None, self.header.parent, self.header.run.started)
        for event, _, _ in self.entries(ROWS, {}):
            if event["kind"] == "running":
                last = last._replace(status="RUNNING", owner=event["owner"])
            elif event["kind"] == "end":
                last = last._replace(status=event["status"])
            elif event["kind"] == "resume":
                last = last._replace(parent=Run(**event["parent"]) if event["parent"] else None)
            last = last._replace(time=event["time"])
        return last

    def append_file(self, path: Path, folder: str) -> None:
        """Copy the file ``path``, to be sent as an artifact in ``folder``. The file may change after this call."""
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
        """Mark that no event follows. The sender removes the journal when MLflow has all events."""
        (self.folder / "finished").touch()

    @property
    def exists(self) -> bool:
        """Whether the journal exists and was not removed."""
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
        """Progress of the sender."""
        try:
            return Sent(**json.loads((self.folder / "sent.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Sent()

    def keep(self, sent: Sent) -> None:
        """Save the progress of the sender."""
        write_json(self.folder / "sent.json", asdict(sent))

    def lock(self, *, blocking: bool) -> FileLock:
        """Return the lock of the sending process. Its file is beside the journal, which may be removed."""
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"), blocking=blocking)

    def remove(self) -> None:
        """Delete the journal. The caller must hold the lock."""
        (self.folder / "run.json").unlink()  # deleted first, because a folder without this file is not a journal
        shutil.rmtree(self.folder)
        self.folder.with_name(f"{self.folder.name}.lock").unlink(missing_ok=True)


def now() -> int:
    """Return the current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def journals(work: Path) -> list[Journal]:
    """Return all journals in the work folder ``work``."""
    return [Journal(page.parent) for page in sorted(work.resolve().glob(f"{FOLDER}/*/run.json"))]


@cache
def _writer(pid: int) -> str:
    """Return the file name of this process. Sorted names are in the order of the first events of processes."""
    return f"{time.time_ns():020d}-{pid}-{uuid.uuid4().hex[:8]}"


def _read(path: Path, name: str, offsets: Mapping[str, int]) -> Iterator[Entry]:
    end = offsets.get(name, 0)
    with path.open("rb") as file:
        file.seek(end)
        for line in file:
            if not line.endswith(b"\n"):  # another process is writing this line
                return
            end += len(line)
            try:
                event = json.loads(line)
            except ValueError:  # an empty line, or a record that a kill or a full disk truncated
                continue
            yield Entry(event, name, end)
