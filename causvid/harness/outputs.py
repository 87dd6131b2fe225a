"""Guard the previous outputs of a stage, which DVC deletes before it runs the stage.

A stage that ends early (by an exception, Ctrl-C or SIGTERM) puts its previous outputs back from DVC's cache. A stage
that was killed by SIGKILL leaves a mark in ``.dvc/tmp/stages``, and ``repair`` puts its outputs back.

DVC has deleted the outputs before this process starts. This module therefore imports only the standard library, so that
the guard can begin before the imports of a stage, which take seconds.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from causvid.harness.project import project_root
from causvid.runtime import files

MARKS = Path(".dvc", "tmp", "stages")
GUARDED = "CAUSVID_STAGE_PID"  # pid of the process with the guard, which its child processes inherit
NOT_IN_PLACE = "the previous outputs are not in place; the next command tries again"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread of a stage by SIGINT and SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as in a shell


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A stage whose previous outputs are guarded.

    Attributes:
        root: Root of the DVC project.
        file: Path of the stage's dvc.yaml, relative to ``root``.
        name: Name of the stage in this file.
    """

    root: Path
    file: Path
    name: str

    @property
    def mark(self) -> Path:
        """The file that exists from the start of the stage until its outputs are complete or back in place."""
        return self.root / MARKS / quote(f"{self.file.as_posix()}:{self.name}", safe="")


_guarded: list[Guarded] = []  # the stage of this process, until its outputs are complete or back in place


def begin() -> None:
    """Guard the outputs of the stage that DVC runs in this process. Without DVC, do nothing.

    SIGINT and SIGTERM now raise ``Stopped``. The kernel kills this process when dvc dies (Linux only), because the
    process would otherwise write into the folders of the next run.
    """
    if not {"DVC_STAGE", "DVC_ROOT"} <= os.environ.keys() or GUARDED in os.environ:
        return  # also in the child processes of a stage
    os.environ[GUARDED] = str(os.getpid())
    if (dvc := os.getppid()) == 1:
        sys.exit("dvc has ended")
    die_with(dvc)
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores signals
            signal.signal(number, _stop)
    # A forked worker must end at once when it is terminated, also during a long call of a library.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    root = Path(os.environ["DVC_ROOT"]).resolve()
    if project_root(root) != root:  # the temporary folder of an experiment has no previous outputs
        return
    path, _, name = os.environ["DVC_STAGE"].rpartition(":")
    file = (_folder_of_dvc() / (path or "dvc.yaml")).resolve().relative_to(root)
    guarded = Guarded(root=root, file=file, name=name)
    with suppress(OSError):  # a full disk
        files.write_json(guarded.mark, {"file": file.as_posix(), "name": name})
    _guarded.append(guarded)
    atexit.register(put_back)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the process ``parent``, which started it, dies (Linux only)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent process has ended")


@contextmanager
def kept() -> Iterator[None]:
    """Put the previous outputs back as soon as the body raises an exception. Otherwise, the stage has finished."""
    try:
        yield
    except BaseException:
        put_back()
        raise
    finished()


def finished() -> None:
    """Declare that the outputs of this process's stage are complete."""
    while _guarded:
        _guarded.pop().mark.unlink(missing_ok=True)


def put_back() -> None:
    """Put the previous outputs of this process's stage back, unless the stage has finished. Print a line about them.

    A child process does it, because Python cannot import DVC while this process exits. Both processes ignore signals
    meanwhile.
    """
    if not _guarded or os.environ[GUARDED] != str(os.getpid()):  # a forked process must not touch the outputs
        return
    handlers = [(number, signal.signal(number, signal.SIG_IGN)) for number in SIGNALS]  # a child process inherits these
    try:
        guarded = _guarded.pop()
        command = [
            sys.executable,
            "-m",
            "causvid.harness.restoring",
            str(guarded.root),
            str(guarded.file),
            guarded.name,
        ]
        subprocess.run([*command, str(os.getpid())], check=False)
    except OSError as error:
        print(f"{guarded.name}: {NOT_IN_PLACE} ({error})", file=sys.stderr, flush=True)
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def repair(root: Path) -> Iterator[str]:
    """Put the previous outputs of stages back that were killed, or whose dvc was killed.

    Yields:
        A sentence for each stage whose outputs were put back, or cannot be put back now.
    """
    root = root.resolve()
    found = [each for each in (*_marked(root), *_locked_by_the_dead(root)) if each not in _guarded]
    if found and project_root(root) == root:
        from causvid.harness import restoring  # imports DVC, which takes half a second

        yield from restoring.restore_killed(root, [*dict.fromkeys(found)])


def _marked(root: Path) -> Iterator[Guarded]:
    """Yield the stages with a mark. They are running or were killed."""
    for mark in sorted((root / MARKS).glob("[!.]*")):
        with suppress(FileNotFoundError):  # the stage has just finished
            entry = json.loads(mark.read_text(encoding="utf-8"))
            yield Guarded(root=root, file=Path(entry["file"]), name=entry["name"])


def _locked_by_the_dead(root: Path) -> Iterator[Guarded]:
    """Yield the stages whose outputs a killed dvc had locked, and may have deleted before the stage set its mark."""
    try:
        held = json.loads((root / ".dvc" / "tmp" / "rwlock").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a killed process may leave an incomplete file, which DVC reports
        return
    import psutil

    from causvid.harness import recorded

    dead = {path for path, info in held.get("write", {}).items() if not psutil.pid_exists(info["pid"])}
    for name, stage in recorded.read_lock(root).items() if dead else ():
        if any(str(root / out["path"]) in dead for out in stage.get("outs", [])):
            yield Guarded(root=root, file=Path("dvc.yaml"), name=name)


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def _folder_of_dvc() -> Path:
    """Return the folder in which dvc runs. DVC's names of stages are relative to this folder."""
    import psutil

    return Path(psutil.Process(os.getppid()).cwd())
