"""Kill the stages of a flow at random moments, and run the same flow again, until there are enough kills.

``python -m tests.pipeline.kill_rounds ROOT KILLS SEED``

The stages are stand-ins that take half a second each. They are run by flows/dvc_task.py, and use the work folders of
real stages. All modules are imported once, and each attempt is a fork. The result is one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from flows.dvc_repo import read_plan, repair
from flows.dvc_task import run_dvc

STAGE = """\
import hashlib, shutil, sys, time
from pathlib import Path
from causvid.harness import outputs, work
from causvid.runtime import files

outputs.begin()
name, *inputs = sys.argv[1:]
root = Path.cwd()
read = [root / path for path in inputs]
origin = work.stage_origin(name, params={}, inputs=[Path(path) for path in inputs], known={}, root=root)
with work.work_folder(name, origin.key, root=root) as folder, outputs.kept():
    for part in range(4):
        if not (folder / f"{part}.part").exists():
            time.sleep(0.05)
            files.write_text(folder / f"{part}.part", f"{name} {part} {origin.key}\\n" * 500)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for part in range(4):
        shutil.copy(folder / f"{part}.part", out / f"{part}.txt")
    files.publish(out, root / "data" / name)
    files.write_json(root / "reports" / f"{name}.json", {"key": origin.key, "parts": 4})
"""
NAMES = {"first": [], "second": ["data/first"], "third": ["data/first", "data/second"]}
LONGEST = 5.0  # longest time in seconds until a kill; an undisturbed attempt takes about four seconds
OVER = 120.0  # time in seconds after which an attempt counts as hanging


def make(root: Path) -> None:
    """Create a pipeline of stand-in stages, in which no stage has been run."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").touch()
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    (root / "stages").mkdir()
    (root / "params.yaml").write_text("profile: tiny\n")
    lines = ["stages:"]
    for name, inputs in NAMES.items():
        (root / "stages" / f"{name}.py").write_text(STAGE)
        lines += [
            f"  {name}:",
            f"    cmd: exec {sys.executable} stages/{name}.py {name} {' '.join(inputs)}",
            f"    deps: [{', '.join([f'stages/{name}.py', *inputs])}]",
            f"    outs: [data/{name}]",
            f"    metrics: [reports/{name}.json: {{cache: false}}]",
        ]
    (root / "dvc.yaml").write_text("\n".join(lines) + "\n")


def outs(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in the outputs of DVC. Hidden files, which belong to git and DVC, are skipped."""
    paths = (path for part in ("data", "reports") for path in sorted((root / part).rglob("*")))
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def state(root: Path) -> dict[str, str]:
    """Return the SHA-256 of dvc.lock and of every file in the outs."""
    return {"dvc.lock": hashlib.sha256((root / "dvc.lock").read_bytes()).hexdigest(), **outs(root)}


def forget(root: Path) -> None:
    """Delete all outs, all unfinished work and all files of DVC."""
    for name in ("data", "reports", ".work", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "dvc.lock").unlink(missing_ok=True)


def start(root: Path, log: Path) -> int:
    """Run all stages in a child process, as a flow does, and return the pid of the child process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.chdir(root)
            for name in repair(root):
                print(f"{name} is incomplete", flush=True)
            for stage in read_plan(root).stages:
                repair(root)
                run_dvc(stage, environment={}, log=lambda line: print(line, flush=True), stop=threading.Event())
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """Return the exit code of ``pid``; None if the process does not end in time."""
    deadline = time.monotonic() + seconds
    while True:
        waited, status = os.waitpid(pid, os.WNOHANG)
        if waited:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def dvcs(pid: int) -> Iterator[psutil.Process]:
    """Yield the running dvc processes among the descendants of an attempt."""
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if any(Path(part).name == "dvc" for part in child.cmdline()[:3]):
                    yield child


def kill(pid: int, *, everything: bool) -> None:
    """Send SIGKILL to dvc only, if ``dvc`` is running, or to the attempt and all its descendants."""
    alone = [] if everything else list(dvcs(pid))
    with suppress(psutil.Error):
        targets = alone or [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for process in targets:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
    if ended(pid, OVER) is None:  # a flow ends by itself if dvc is killed
        raise TimeoutError("an attempt outlived its dvc")


def main(root: Path, wanted: int, seed: int) -> None:
    """Kill ``wanted`` times, and print a line of JSON.

    The line counts the kills, the rounds that finished, the rounds whose result differs from an undisturbed run
    (different), and the attempts that failed without a kill (stuck).
    """
    make(root)
    log, draw = root / "log.txt", random.Random(seed)
    if ended(start(root, log), OVER) != 0:
        sys.exit(log.read_text())
    undisturbed = state(root)
    forget(root)
    kills = rounds = different = stuck = 0
    last = ""
    while kills < wanted or not rounds:
        pid = start(root, log)
        code = ended(pid, draw.uniform(0.05, LONGEST) if kills < wanted else OVER)
        if code is None:
            kill(pid, everything=kills % 2 == 0)
            kills += 1
        elif code:  # the attempt failed without a kill, so the project would need manual repair
            stuck, last = stuck + 1, log.read_text()[-3000:]
            forget(root)
        else:
            rounds += 1
            different += state(root) != undisturbed
            forget(root)
    print(json.dumps({"kills": kills, "rounds": rounds, "different": different, "stuck": stuck, "log": last}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
