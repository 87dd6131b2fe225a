"""Run jobs in worker processes that may die, because a broken video can hang or crash its decoder.

A worker process runs one job at a time. At the time limit, an alarm kills the process, even if its interpreter is
blocked, and a new process replaces the killed process. Memory is limited too, because a damaged header of a few bytes
can make a decoder request all memory. Process pools of other libraries, such as pebble, have no memory limit.
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
    """The result of a job that exceeded a limit or crashed its worker.

    Attributes:
        code: timeout, memory or crashed.
        reason: A clause that explains the code.
    """

    code: str
    reason: str


def run_killable(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, seconds: float, memory: int
) -> Iterator[tuple[Job, Result | Lost]]:
    """Run ``work`` on every job in worker processes. The worker processes end with this process, even if it is killed.

    Args:
        work: Function of one job. The function, the jobs and the results must be picklable.
        jobs: The arguments of ``work``.
        workers: Number of processes.
        seconds: Time limit of one job.
        memory: Memory limit of one process in bytes.

    Yields:
        Each job and its result, in the order of completion. The result is ``Lost`` if the job exceeded a limit or
        crashed its worker.

    Raises:
        Exception: The first exception that ``work`` raises.
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
        # The start method is "spawn", because a fork of a process with threads (MLflow, torch) can deadlock.
        context = get_context("spawn")
        self.connection, worker_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(worker_end, work, seconds, memory), daemon=True)
        self.process.start()
        worker_end.close()  # so that the death of the worker closes the connection
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
                return Lost(code="timeout", reason=f"the work took more than {self.seconds:g} seconds and was stopped")
            return Lost(code="crashed", reason=f"the worker process died (exit code {self.process.exitcode})")
        if isinstance(result, _Raised) and isinstance(result.error, MemoryError):
            return Lost(code="memory", reason=f"the work needed more than {self.memory / 2**30:.3g} GiB of memory")
        if isinstance(result, _Raised):
            raise result.error
        return result


def _serve(connection: Connection, work: Callable[[Any], Any], seconds: float, memory: int) -> None:
    # The limit is on private writable memory, not on address space, because libraries map far more than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the parent closed the connection or died
            return
        # SIGALRM keeps its default action: the kernel kills the process, even if a thread holds the interpreter lock.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = work(job)
        except MemoryError:  # a new error is sent, because a library's subclass of MemoryError may not be picklable
            result = _Raised(MemoryError())
        except Exception as error:  # the parent raises this error again
            result = _Raised(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(result)
