"""The one Prefect task: run one DVC stage as one subprocess, stream its log, kill it when asked, say what DVC did.

DVC is the cache, so Prefect's is off; timeouts and cancellation act on the process group, because Prefect cannot stop a
thread that waits for a process.
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
from typing import IO, Any, Literal

from filelock import FileLock, Timeout
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.dvc_repo import Stage, read_metrics, repair
from flows.progress import ProgressBar

Outcome = Literal["ran", "restored", "unchanged"]

POLL = 0.3  # seconds between two looks at the clock and at ``stop``
GRACE = 5.0  # seconds an interrupted stage has before it is killed
NO_ROOM = 2**20  # bytes
TAIL = 20  # lines of a failed stage's log that its state carries
RETRY_DELAY = 10  # seconds
# What dvc prints about a stage, and nothing else tells.
MESSAGES: Mapping[str, Outcome] = {
    "Running stage '{}':": "ran",
    "Stage '{}' is cached - skipping run, checking out outputs": "restored",
    "Stage '{}' didn't change, skipping": "unchanged",
    "Verifying outputs in frozen stage: '{}'": "unchanged",
}
# dvc would outlive a killed flow, and the stage lives as long as dvc does. The parent may be gone before this is asked.
LAUNCHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one stage."""

    stage: str
    outcome: Outcome
    seconds: float  # of the subprocess
    metrics: Mapping[str, Any]  # the content of its metrics files


class StageFailed(Exception):
    """dvc ended with an error: ``reason`` in one line, the whole message with the last lines of the stage's log."""

    def __init__(self, reason: str, tail: Iterable[str] = ()) -> None:
        super().__init__("\n".join([reason, *tail]))
        self.reason = reason


class StageTimedOut(StageFailed):
    """One attempt took longer than the stage's ``meta.timeout``."""


@task(name="dvc stage", task_run_name="{stage.name}", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY)
def run_stage(stage: Stage, root: Path, environment: Mapping[str, str], stop: threading.Event) -> State[Record]:
    """Bring one stage up to date; the state's name says how: Ran, Restored, Unchanged, Failed or TimedOut."""
    if stage.settled:
        same = Record(stage=stage.name, outcome="unchanged", seconds=0.0, metrics=read_metrics(stage))
        return Completed(name="Unchanged", message="it and all before it are up to date", data=same)
    logger = get_run_logger()
    for name in repair(root):
        logger.warning("%s was cut short by a kill; set aside, finished stages come back from DVC's run cache", name)
    bar = ProgressBar(stage.name)

    def hear(line: str) -> None:
        logger.info(line)
        bar(line)

    try:
        with turn(stage, log=logger.info, stop=stop):
            record = run_dvc(stage, root, environment=environment, log=hear, stop=stop)
        bar.done()
        new = stage.has_remote and record.outcome == "ran"
        if new and not push(stage, root, environment=environment, log=logger.info, stop=stop):
            logger.warning("what %s made is here alone, not on the remote; 'dvc push' tries again", stage.name)
    except StageFailed as error:
        name = "TimedOut" if isinstance(error, StageTimedOut) else "Failed"
        return Failed(name=name, message=error.reason, data=error)
    return Completed(name=record.outcome.capitalize(), message=f"in {record.seconds:.1f} s", data=record)


@contextmanager
def turn(stage: Stage, *, log: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """Hold this machine's GPUs for a stage that takes them; wait while a stage of another flow of this user has them.

    A lock of the kernel's, which frees it when its holder is killed: a limit that a server counts would stay taken.
    Raises CancelledError when ``stop`` is set meanwhile.
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
            log(f"{stage.name} waits for the GPUs: a stage of another flow on this machine has them")
        waiting = True
    try:
        yield
    finally:
        lock.release()


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def run_dvc(
    stage: Stage, root: Path, *, environment: Mapping[str, str], log: Callable[[str], None], stop: threading.Event
) -> Record:
    """``dvc repro`` of the one stage; every line of output goes to ``log`` as it comes.

    Raises StageFailed, StageTimedOut, or CancelledError when ``stop`` is set; nothing of the stage lives on after that.
    """
    started = time.monotonic()
    outcomes: list[Outcome] = []

    def hear(line: str) -> None:
        log(line)
        outcomes.extend(filter(None, [classify(line, stage.name)]))

    code, tail = _follow(command("repro", "-s", stage.name), stage, root, environment, hear, stop)
    if code or not outcomes:
        # DVC's own words for it may be "No possible cache link types".
        full = ", the disk is full" if shutil.disk_usage(root).free < NO_ROOM else ""
        raise StageFailed(f"stage {stage.name} failed (dvc's exit code {code}{full})", tail)
    seconds = time.monotonic() - started
    return Record(stage=stage.name, outcome=outcomes[-1], seconds=round(seconds, 2), metrics=read_metrics(stage))


def push(
    stage: Stage, root: Path, *, environment: Mapping[str, str], log: Callable[[str], None], stop: threading.Event
) -> bool:
    """``dvc push`` of the one stage's outs; whether they are on the remote. Raises as run_dvc when it is stopped."""
    return not _follow(command("push", stage.name), stage, root, environment, log, stop)[0]


def command(*arguments: str) -> list[str]:
    """The argument list of a dvc command, with the dvc of this environment."""
    return bound([str(Path(sys.executable).with_name("dvc")), "--wait-for-lock", *arguments])


def bound(arguments: list[str]) -> list[str]:
    """The argument list of a command that is killed when this process dies (on Linux)."""
    return [sys.executable, "-c", LAUNCHER, str(os.getpid()), *arguments] if sys.platform == "linux" else arguments


def _follow(
    arguments: list[str],
    stage: Stage,
    root: Path,
    environment: Mapping[str, str],
    log: Callable[[str], None],
    stop: threading.Event,
) -> tuple[int, deque[str]]:
    """Run dvc for a stage; its exit code and last lines."""
    if stop.is_set():
        raise CancelledError(f"stage {stage.name} was not started")
    deadline = time.monotonic() + (float("inf") if stage.timeout is None else stage.timeout)
    tail: deque[str] = deque(maxlen=TAIL)
    process = _start(arguments, root, environment)
    try:
        for line in _lines(process):
            if stop.is_set():
                raise CancelledError(f"stage {stage.name} was stopped")
            if time.monotonic() > deadline:
                raise StageTimedOut(f"stage {stage.name} took longer than its {stage.timeout:g} s", tail)
            if line:
                log(line)
                tail.append(line)
    finally:
        _end_group(process)
    return process.returncode, tail


def classify(line: str, stage: str) -> Outcome | None:
    """What a line of dvc's output says was done with ``stage``; None for any other line."""
    return next((outcome for message, outcome in MESSAGES.items() if line == message.format(stage)), None)


def _start(command: list[str], root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """In a session of its own, our python first on PATH, output not held back until a buffer is full."""
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
    """Lines of output as they come, and an empty one every ``POLL`` seconds of silence, until the process has ended."""
    assert process.stdout is not None
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    finished = False
    while not finished or process.poll() is None:
        line: str | None = ""
        try:
            line = lines.get(timeout=POLL)
        except Empty:
            # Silence after its end: a process that dvc left behind holds the pipe open.
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
    """End dvc and all it started. An interrupt first: dvc then releases its locks."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
