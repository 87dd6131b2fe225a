"""The Prefect task that runs one DVC stage in a subprocess, forwards its output, and reports the outcome.

Prefect's cache is disabled, because DVC is the cache. Timeouts and cancellation kill the process group, because Prefect
cannot stop a thread that waits for a process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Literal

from filelock import FileLock, Timeout
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.dvc_repo import Stage, repair
from flows.progress import ProgressBar

Outcome = Literal["ran", "restored", "unchanged"]

POLL = 0.3  # seconds between two checks of the clock and of ``stop``
GRACE = 5.0  # seconds from the interrupt of a stage to its SIGKILL
NO_ROOM = 2**20  # a disk with less free space, in bytes, is reported as full
TAIL = 20  # number of last lines of a failed stage's output that are stored in the state of the task
RETRY_DELAY = 10  # seconds before a failed stage is run again
# Maps lines of dvc's output to outcomes, because no other result of dvc reports the outcome of a stage.
MESSAGES: Mapping[str, Outcome] = {
    "Running stage '{}':": "ran",
    "Stage '{}' is cached - skipping run, checking out outputs": "restored",
    "Stage '{}' didn't change, skipping": "unchanged",
    "Verifying outputs in frozen stage: '{}'": "unchanged",
}
# Without this launcher, dvc would continue after its flow was killed. The launcher asks the kernel to kill dvc when the
# flow ends (PR_SET_PDEATHSIG). The flow may end before this request; the launcher therefore checks the parent process.
LAUNCHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one stage.

    Attributes:
        stage: Name of the stage.
        outcome: Whether the stage ran, was restored from DVC's cache or was unchanged.
        seconds: Duration of the subprocess.
    """

    stage: str
    outcome: Outcome
    seconds: float


class StageFailed(Exception):
    """Raised if dvc failed. ``reason`` is one line. The message also contains the last lines of the stage's output."""

    def __init__(self, reason: str, tail: Iterable[str] = ()) -> None:
        super().__init__("\n".join([reason, *tail]))
        self.reason = reason


class StageTimedOut(StageFailed):
    """Raised if an attempt exceeded the stage's ``meta.timeout``."""


@task(name="dvc stage", task_run_name="{stage.name}", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY)
def run_stage(stage: Stage, root: Path, environment: Mapping[str, str], stop: threading.Event) -> State[Record]:
    """Bring one stage up to date. The name of the state is Ran, Restored, Unchanged, Failed or TimedOut."""
    if stage.settled:
        same = Record(stage=stage.name, outcome="unchanged", seconds=0.0)
        return Completed(name="Unchanged", message="the stage and all upstream stages are up to date", data=same)
    logger = get_run_logger()
    for name in repair(root):
        logger.warning("%s is incomplete because a process was killed; moved to .dvc/tmp", name)
    bar = ProgressBar(stage.name)

    def handle(line: str) -> None:
        logger.info(line)
        bar(line)

    try:
        with turn(stage, log=logger.info, stop=stop):
            record = run_dvc(stage, environment=environment, log=handle, stop=stop)
        bar.done()
        new = stage.has_remote and record.outcome == "ran"
        if new and not push(stage, environment=environment, log=logger.info, stop=stop):
            logger.warning("the outs of %s are not on the remote; run 'dvc push' to try again", stage.name)
    except StageFailed as error:
        name = "TimedOut" if isinstance(error, StageTimedOut) else "Failed"
        return Failed(name=name, message=error.reason, data=error)
    return Completed(name=record.outcome.capitalize(), message=f"in {record.seconds:.1f} s", data=record)


@contextmanager
def turn(stage: Stage, *, log: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """Lock the GPUs of this machine for a stage that needs GPUs. Wait while another flow of this user has the lock.

    If the process is killed, the kernel releases the lock. A concurrency limit on a server would remain occupied.

    Args:
        stage: The stage. If it needs no GPU, nothing is locked.
        log: A function that receives one line if the stage has to wait.
        stop: An event that ends the waiting.

    Raises:
        CancelledError: ``stop`` was set.
    """
    if not (stage.gpu and has_gpu()):
        yield
        return
    lock = FileLock(Path(tempfile.gettempdir()) / f"causvid-gpu-{os.getuid()}.lock", timeout=POLL)
    waiting = False
    while True:
        if stop.is_set():
            raise CancelledError(f"stage {stage.name} was not started")
        with suppress(Timeout):
            lock.acquire()
            break
        if not waiting:
            log(f"{stage.name} waits for the GPUs: a stage of another flow on this machine uses them")
        waiting = True
    try:
        yield
    finally:
        lock.release()


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def run_dvc(
    stage: Stage, *, environment: Mapping[str, str], log: Callable[[str], None], stop: threading.Event
) -> Record:
    """Run ``dvc repro`` for one stage only. All processes of the stage have ended when an error is raised.

    Args:
        stage: The stage.
        environment: Additional environment variables.
        log: A function that receives each line of output as soon as it is printed.
        stop: An event that cancels the stage.

    Raises:
        StageFailed: dvc failed.
        StageTimedOut: The stage exceeded its timeout.
        CancelledError: ``stop`` was set.
    """
    started = time.monotonic()
    outcomes: list[Outcome] = []

    def handle(line: str) -> None:
        log(line)
        outcomes.extend(filter(None, [classify(line, stage.address)]))

    code, tail = _follow(command("repro", "-s", stage.address), stage, environment, handle, stop)
    if code or not outcomes:
        # DVC may report a full disk as "No possible cache link types".
        full = ", the disk is full" if shutil.disk_usage(stage.project).free < NO_ROOM else ""
        raise StageFailed(f"stage {stage.name} failed (dvc's exit code {code}{full})", tail)
    seconds = time.monotonic() - started
    return Record(stage=stage.name, outcome=outcomes[-1], seconds=round(seconds, 2))


def push(stage: Stage, *, environment: Mapping[str, str], log: Callable[[str], None], stop: threading.Event) -> bool:
    """Run ``dvc push`` for the outs of one stage. ``run_dvc`` describes the arguments.

    Returns whether the push succeeded. Raises StageTimedOut and CancelledError under the conditions of ``run_dvc``.
    """
    return not _follow(command("push", stage.address), stage, environment, log, stop)[0]


def command(*arguments: str) -> list[str]:
    """Return the argument list of a dvc command, which runs the dvc in this Python environment."""
    return bound([str(Path(sys.executable).with_name("dvc")), "--wait-for-lock", *arguments])


def bound(arguments: list[str]) -> list[str]:
    """Return the argument list of a command that is killed when this process ends (on Linux)."""
    return [sys.executable, "-c", LAUNCHER, str(os.getpid()), *arguments] if sys.platform == "linux" else arguments


def _follow(
    arguments: list[str],
    stage: Stage,
    environment: Mapping[str, str],
    log: Callable[[str], None],
    stop: threading.Event,
) -> tuple[int, deque[str]]:
    """Run dvc for a stage, and return the exit code and the last lines of output."""
    if stop.is_set():
        raise CancelledError(f"stage {stage.name} was not started")
    deadline = time.monotonic() + (float("inf") if stage.timeout is None else stage.timeout)
    tail: deque[str] = deque(maxlen=TAIL)
    process = _start(arguments, stage.project, environment)
    try:
        for line in _lines(process):
            if stop.is_set():
                raise CancelledError(f"stage {stage.name} was stopped")
            if time.monotonic() > deadline:
                raise StageTimedOut(f"stage {stage.name} exceeded its timeout of {stage.timeout:g} s", tail)
            if line:
                log(line)
                tail.append(line)
    finally:
        _end_group(process)
    return process.returncode, tail


def classify(line: str, stage: str) -> Outcome | None:
    """Return the outcome of ``stage`` that a line of dvc's output reports; None for any other line."""
    return next((outcome for message, outcome in MESSAGES.items() if line == message.format(stage)), None)


def _start(command: list[str], root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command in a new session, without output buffering. Programs of this environment are first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of output until the process has ended, and an empty line after ``POLL`` seconds of silence."""
    assert process.stdout is not None
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    finished = False
    while not finished or process.poll() is None:
        line: str | None = ""
        try:
            line = lines.get(timeout=POLL)
        except Empty:
            # After the end of the process, one of its descendants may still hold the pipe open.
            finished = process.poll() is not None
        if line is None:
            finished = True
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
        yield line or ""


def _read(stream: IO[str], lines: SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line.rstrip())
    lines.put(None)


def _end_group(process: subprocess.Popen[str]) -> None:
    """End dvc and all its descendants. dvc first gets an interrupt, so that it releases its locks."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
