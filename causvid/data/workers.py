"""Worker processes that may die: a broken video can hang or crash its decoder, and that must cost one video only.

A worker runs one job at a time under an alarm that kills it, whatever holds its interpreter; it is then replaced. How
much memory it may take is limited too: a header of a few bytes can ask for all there is.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The result of a job its worker did not survive. code: timeout | memory | crashed; reason: a sentence."""

    code: str
    reason: str


def run_killable(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, seconds: float, memory: int
) -> Iterator[tuple[Job, Result | Lost]]:
    """Yield every job with ``work(job)``, in the order they finish, from ``workers`` processes.

    A job that takes more than ``seconds`` or ``memory`` bytes, or takes its worker down, yields ``Lost``; an exception
    it raises is raised here. ``work``, jobs and results are pickled. The processes end with this one, even when it is
    killed.
    """
    todo = iter(jobs)
    busy: dict[Any, _Worker[Job, Result]] = {}
    idle: list[_Worker[Job, Result]] = []
    try:
        for job in islice(todo, workers):
            worker = _Worker(work, seconds, memory)
            busy[worker.give(job)] = worker
        while busy:
            for ready in wait(list(busy)):
                worker = busy.pop(ready)
                idle.append(worker)
                job, result = worker.job, worker.result()
                for following in islice(todo, 1):
                    worker = _Worker(work, seconds, memory) if isinstance(result, Lost) else idle.pop()
                    busy[worker.give(following)] = worker
                yield job, result
    finally:
        for worker in busy.values():
            worker.process.kill()
        for worker in [*busy.values(), *idle]:
            worker.connection.close()
            worker.process.join()


@dataclass(frozen=True)
class _Raised:
    error: Exception


class _Worker(Generic[Job, Result]):
    job: Job

    def __init__(self, work: Callable[[Job], Result], seconds: float, memory: int) -> None:
        # Spawned: a fork of a process with threads (MLflow, torch) may never come back.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, seconds, memory), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the connection
        self.seconds, self.memory = seconds, memory

    def give(self, job: Job) -> Connection:
        self.job = job
        self.connection.send(job)
        return self.connection

    def result(self) -> Result | Lost:
        try:
            result: Result | Lost | _Raised = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            if self.process.exitcode == -signal.SIGALRM:
                return Lost(code="timeout", reason=f"it took more than {self.seconds:g} seconds and was stopped")
            return Lost(code="crashed", reason=f"its worker process died (exit code {self.process.exitcode})")
        if isinstance(result, _Raised) and isinstance(result.error, MemoryError):
            return Lost(code="memory", reason=f"it took more than {self.memory / 2**30:.3g} GiB of memory")
        if isinstance(result, _Raised):
            raise result.error
        return result


def _serve(connection: Connection, work: Callable[[Any], Any], seconds: float, memory: int) -> None:
    # What it writes to, not what it maps: libraries map far more than they touch.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the parent has no more jobs, or is no more
            return
        # Left to its default the signal is handled by the kernel: no interpreter lock can hold it up.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = work(job)
        except MemoryError:  # a fresh one: a library's own may not be picklable
            result = _Raised(MemoryError())
        except Exception as error:  # raised again in the parent
            result = _Raised(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(result)
