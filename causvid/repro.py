"""Run the experiment: ``python -m causvid.repro COMMAND``. The command is ``dvc repro`` or a flow.

Before the command, the outputs of killed stages are put back, and the whole params.yaml is checked: a wrong entry thus
costs no output, because DVC deletes the outputs of a stage before it runs the stage. After the command, the last block
is printed. DVC's hints about git and remotes are not printed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from causvid.consistency import read_profile
from causvid.harness import outputs
from causvid.harness.lines import busy
from causvid.harness.project import refuse_unusable
from causvid.reporting import closing

PARAMS, REPORTS, PAGE = Path("params.yaml"), Path("reports"), Path("reports/index.html")
HINTS = (
    "To track the changes with git, run:",
    "\tgit add ",
    "To enable auto staging, run:",
    "\tdvc config core.autostage true",
    "Use `dvc push` to send your updates to remote storage.",
)


def main(command: Sequence[str]) -> None:
    """Run ``command`` in the current folder. If the command fails, this process has the exit code of the command."""
    for line in outputs.repair(Path.cwd()):
        print(line, flush=True)
    try:
        refuse_unusable(Path.cwd())
        profile = read_profile(PARAMS).profile
    except ValueError as error:
        sys.exit(f"{error}\nnothing was started")
    if said := busy():
        print(said.strip(" ()"), flush=True)
    if code := run(command):
        sys.exit(code)
    seconds = time.time() - psutil.Process().create_time()
    print(closing.block(REPORTS, PAGE, profile, seconds))


def run(command: Sequence[str]) -> int:
    """Run a command, print its output without DVC's hints, and return its exit code.

    Ctrl-C also reaches the command, which ends by itself. This process only waits.
    """
    env = {**os.environ, closing.COMMAND: "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, errors="replace")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert process.stdout
    for line in without_hints(process.stdout):
        print(line, end="", flush=True)
    return process.wait()


def without_hints(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that are not hints of DVC. Blank lines before a hint and at the end are left out."""
    blank = ""
    for line in lines:
        if not line.strip():
            blank = line
        elif not line.startswith(HINTS):
            yield from filter(None, (blank, line))
            blank = ""
        else:
            blank = ""


if __name__ == "__main__":
    main(sys.argv[1:])
