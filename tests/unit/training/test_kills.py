"""A training that is killed repeatedly at random moments writes the same bytes as an undisturbed training."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causvid.training.trainer import CURVE, EXPORT

# Python 3.12 and later warn if a process with threads forks. The child processes of this file are safe: they only
# compute, and then exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def started(work: Callable[[], None], said: Path) -> int:
    """Return the pid of a forked process that calls ``work``. An error is written to ``said``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    return child


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [folder / CURVE, *sorted((folder / EXPORT).iterdir())]}


@pytest.mark.parametrize("name", ["ode", "dmd", "dmd_sharing_samples"])
@pytest.mark.parametrize("kills", [10, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_killed_runs_give_the_bytes_of_an_undisturbed_one(
    name: str, kills: int, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Restart runs until enough runs are killed. An undisturbed run takes about as long as four killed runs."""
    kind, dice, done, runs = kinds[name], random.Random(0), 0, 0
    began = time.monotonic()
    kind.train(kind.new_run(tmp_path / "straight", steps=12))
    took = time.monotonic() - began
    expected = results(tmp_path / "straight")
    while done < kills:
        runs += 1
        run, said = kind.new_run(tmp_path / f"{runs}", steps=12), tmp_path / f"{runs}.error"
        while True:
            child = started(lambda run=run: kind.train(run), said)
            # The delay before the kill increases, because the fork of a large process may take longer than a complete
            # training.
            time.sleep(dice.uniform(0, took / 2) * (1 + done / kills))
            os.kill(child, signal.SIGKILL)  # the signal has no effect on a child that has ended and waits to be reaped
            status = os.waitpid(child, 0)[1]
            assert not said.exists(), said.read_text()
            if os.WIFEXITED(status):
                break
            done += 1
        assert results(run.work) == expected


@pytest.mark.parametrize("name", ["teacher", "ode", "dmd"])
def test_a_partial_file_of_a_killed_run_is_not_exported(name: str, kinds: dict[str, Any], tmp_path: Path) -> None:
    """safetensors writes a file under a hidden name, and then renames the file."""
    run = kinds[name].new_run(tmp_path / "run", steps=1)
    (run.work / EXPORT).mkdir(parents=True)
    (run.work / EXPORT / ".tmpLoWOEp").write_bytes(bytes(100))
    kinds[name].train(run)
    assert sorted(path.name for path in (run.work / EXPORT).iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "training_record.json",
    ]
