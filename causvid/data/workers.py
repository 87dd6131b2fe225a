"""Worker processes that may die: a broken video can hang or crash its decoder, and that must cost one video only.

A worker runs one job at a time under an alarm that kills it, whatever holds its interpreter; it is then replaced.
"""

from __future__ import annotations

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
    """Stands for the result of a job whose worker did not survive it. code: timeout | crashed; reason: a sentence."""

    code: str
    reason: str


def run_killable(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, seconds: float
) -> Iterator[tuple[Job, Result | Lost]]:
    """Yield every job with ``work(job)``, in the order they finish, from ``workers`` processes.

    A job that takes more than ``seconds`` or takes its worker down yields ``Lost``; an exception it raises is raised
    here. ``work``, jobs and results are pickled. The processes end with this one, even when it is killed.
    """
    todo = iter(jobs)
    busy: dict[Any, _Worker[Job, Result]] = {}
    idle: list[_Worker[Job, Result]] = []
    try:
        for job in islice(todo, workers):
            worker = _Worker(work, seconds)
            busy[worker.give(job)] = worker
        while busy:
            for ready in wait(list(busy)):
                worker = busy.pop(ready)
                idle.append(worker)
                job, result = worker.job, worker.result()
                for following in islice(todo, 1):
                    worker = _Worker(work, seconds) if isinstance(result, Lost) else idle.pop()
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

    def __init__(self, work: Callable[[Job], Result], seconds: float) -> None:
        # Spawned: a fork of a process with threads (MLflow, torch) may never come back.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, seconds), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the connection
        self.seconds = seconds

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
        if isinstance(result, _Raised):
            raise result.error
        return result


def _serve(connection: Connection, work: Callable[[Any], Any], seconds: float) -> None:
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the parent has no more jobs, or is no more
            return
        # Left to its default the signal is handled by the kernel: no interpreter lock can hold it up.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = work(job)
        except Exception as error:  # raised again in the parent
            result = _Raised(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(result)
