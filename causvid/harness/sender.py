"""Send a stage's journal to MLflow in a separate process, and also the records that earlier stages could not send.

The process is separate, because a failing store may block for a long time or use much memory. A stage waits for the
sender only at the end of the stage, and for a limited time.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from causvid.harness import parents
from causvid.harness.journal import Header, Journal, journals
from causvid.harness.machine import watch
from causvid.harness.project import work_root

COMMAND = "python -m causvid.harness.outbox"  # sends the records that are left
POLL = 1.0  # seconds between two reads of a journal
LONGEST_PAUSE = 10.0  # maximum seconds between two tries if MLflow does not answer
GRACE = 120.0  # maximum seconds of a sender after the end of its stage
GRACE_AFTER_FAILURE = 15.0  # as GRACE, if MLflow has failed before
SENT, KEPT = 0, 3  # exit codes of a sender: MLflow has all records; or some records are left, and a line was printed
# Settings of MLflow that disable its retries and its output. The sender itself tries again.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # an open connection would write to a store file that was moved
}


class Complaint:
    """Prints a single line if MLflow does not accept the records of a journal."""

    def __init__(self, journal: Journal) -> None:
        """Prepare the line about the records in ``journal``."""
        self.journal, self.made = journal, False

    def __call__(self, reason: str) -> None:
        """Print the line at the first call. Nothing is printed for a journal that another process has sent."""
        if not self.made and self.journal.exists:
            self.made = True
            name, place = self.journal.header.run.name, os.path.relpath(self.journal.folder)
            print(
                f"MLflow cannot accept the records of {name} now ({reason}). They are kept in {place}; the next stage "
                f"sends them, or this command: {COMMAND}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def sending(journal: Journal, root: Path) -> Iterator[None]:
    """Send ``journal`` during and at the end of the ``with`` block. A failure only prints one line on stderr."""
    process = _begin(journal, root)
    try:
        yield
    finally:
        if process:
            code = _end(process)
            if code not in (SENT, KEPT):
                Complaint(journal)(f"its sender ended with exit code {code}")


def _begin(journal: Journal, root: Path) -> subprocess.Popen[bytes] | None:
    command = [sys.executable, "-m", __name__, str(journal.folder), str(root.resolve())]
    try:
        # In its own session, the sender gets no Ctrl-C. It must still send the end of the run.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=root, start_new_session=True
        )
    except OSError as error:
        Complaint(journal)(str(error))
        return None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Tell a sender that its stage has ended, wait for the sender, and return the exit code."""
    assert process.stdin
    with suppress(BrokenPipeError):  # the sender was killed
        process.stdin.write(b"\n")
        process.stdin.close()
    try:
        return process.wait(GRACE + 10)  # a sender without problems ends earlier
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def follow(journal: Journal, root: Path, ended: threading.Event, complain: Complaint) -> int:
    """Send the records that other stages left, then the records of ``journal`` until its stage has ``ended``.

    Returns:
        ``SENT`` or ``KEPT``.
    """
    with journal.lock(blocking=True):  # the sender of a killed stage may still run and hold the lock
        if not journal.exists:  # the sender of another stage has sent and removed the journal
            return SENT
        send_waiting(root)
        code = _follow(journal, root, ended, complain)
        if code == SENT and journal.is_finished:
            journal.remove()
    return code


def _follow(journal: Journal, root: Path, ended: threading.Event, complain: Complaint) -> int:
    from causvid.harness.delivery import Delivery, first_line

    deliver, parent, pause = Delivery(journal, root), _parent_of(journal, root), POLL
    while True:
        last = ended.is_set()  # read before sending, so that all events before the end are sent
        try:
            deliver()
            if parent and parent.is_waiting:
                with parent.lock(blocking=True):
                    if parent.exists:  # the sender of a flow may have sent and removed it
                        Delivery(parent, root)()
            pause = POLL
        except Exception as error:  # a failure of MLflow must not stop the stage
            complain(first_line(error))
            pause = min(2 * pause, LONGEST_PAUSE)
            if last:
                return KEPT
        if last:
            return SENT
        ended.wait(pause)


def _parent_of(journal: Journal, root: Path) -> Journal | None:
    """Return the journal of the parent run; None if there is no parent run, or another program began it."""
    parent = journal.last().parent
    return parents.journal_of(parent.token, root) if parent else None


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attempt to send a journal.

    Attributes:
        journal: The journal. It is removed when the stage has finished and MLflow has all records.
        name: Name of the journal's run.
        run_id: Id of the journal's run in MLflow; None if the run was not created.
        reason: Reason why records are left; None if no records are left.
    """

    journal: Journal
    name: str
    run_id: str | None
    reason: str | None


def send_waiting(root: Path) -> list[Outcome]:
    """Send the journals that no other process is sending. Oldest journals are first, parent runs after their stages.

    The runs of killed processes are ended before.
    """
    from causvid.harness.delivery import first_line

    outcomes: list[Outcome] = []
    failed: dict[str | None, str] = {}  # maps a store to its failure; a failed store is slow, and is not tried again
    found = _journals_of(root)
    parents.end_killed([journal for journal, _ in found])
    for journal, header in found:
        if not journal.is_waiting and not journal.is_finished:
            continue
        run_id, reason = None, failed.get(header.store)
        try:
            with journal.lock(blocking=False):
                if not journal.exists:  # the stage's own sender has sent and removed the journal
                    continue
                if reason is None:
                    run_id = _send(journal, root)
        except Timeout:
            continue
        except Exception as error:
            reason = failed[header.store] = first_line(error)
        outcomes.append(Outcome(journal, header.run.name, run_id, reason))
    return outcomes


def _send(journal: Journal, root: Path) -> str | None:
    from causvid.harness.delivery import Delivery

    delivery = Delivery(journal, root)
    delivery()
    token = journal.header.run.token
    # A parent run is needless if MLflow has not created it and no records of its stages are left.
    needless = not delivery.known and all(
        header.parent is None or header.parent.token != token for _, header in _journals_of(root)
    )
    if journal.is_finished and (needless or not journal.is_waiting):
        journal.remove()
    return delivery.sent.run_id


def _journals_of(root: Path) -> list[tuple[Journal, Header]]:
    """Return all journals of a project, oldest first and parent runs after their stages."""
    found = []
    for work in work_root(root).glob("*/*"):
        for journal in journals(work):
            with suppress(FileNotFoundError):  # the sender has just removed the journal
                found.append((journal, journal.header))
    return sorted(found, key=lambda it: (it[1].needs_child, it[1].run.started))


def main(folder: Path, root: Path) -> int:
    """Send the journal in ``folder`` until a byte on stdin signals the end of the stage. Return an exit code."""
    quiet()
    journal, stop, ended = Journal(folder), threading.Event(), threading.Event()
    complain = Complaint(journal)
    watcher = threading.Thread(target=watch, args=(journal, stop), daemon=True)

    def wait_for_end() -> None:
        if not os.read(0, 1):  # the stage was killed, and readers of the shared stderr would wait for this process
            os._exit(KEPT)
        stop.set()
        if watcher.is_alive():
            watcher.join(timeout=5)
        ended.set()
        begun = time.monotonic()
        while time.monotonic() - begun < (GRACE_AFTER_FAILURE if complain.made else GRACE):
            time.sleep(POLL)
        complain(f"MLflow does not answer within {GRACE:.0f} seconds")
        os._exit(KEPT)

    threading.Thread(target=wait_for_end, daemon=True).start()
    try:
        import mlflow.tracking  # noqa: F401  # two threads must not import MLflow together

        watcher.start()
        return follow(journal, root, ended, complain)
    except Exception as error:
        complain(str(error))
        return KEPT


def quiet() -> None:
    """Configure MLflow so that it fails early and without output."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
