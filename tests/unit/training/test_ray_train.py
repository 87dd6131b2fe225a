"""Ray Train resumes from the last checkpoint if a worker dies, and stops immediately at an error of the user."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from causvid.training.trainer import CURVE, EXPORT
from tests.unit.training.conftest import assert_same_losses, laptop_optimizers
from tests.unit.training.ray_train_child import launched

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(autouse=True)
def _our_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow workers to import the modules of this repository."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))


def on_two(run: Any) -> Any:
    return replace(run, compute=replace(run.compute, workers=2))


def ranks() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # the process may have ended in the meantime
            if any("RayTrainWorker" in word for word in process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


@pytest.mark.slow
def test_a_rank_is_killed_ten_times(kinds: dict[str, Any], tmp_path: Path) -> None:
    """The test kills the two ranks alternately, each time after a new checkpoint."""
    kind, kills, back = kinds["dmd"], 10, list[float]()
    runs = [
        on_two(kind.new_run(tmp_path / name, steps=6 * kills, checkpoint_every=2)) for name in ("straight", "killed")
    ]
    checkpoints, running = runs[1].work / "checkpoints", threading.Event()
    running.set()

    def kill() -> None:
        seen: set[str] = set()
        for number in range(kills):
            began = time.monotonic()
            while running.is_set() and not (new := {path.name for path in checkpoints.glob("step-*")} - seen):
                time.sleep(0.01)
            if not running.is_set():
                return
            back.append(time.monotonic() - began)
            seen |= new
            while not (alive := ranks()):
                time.sleep(0.01)
            alive[number % len(alive)].kill()

    done = launched(kind.train, runs[0])
    assert done.returncode == 0, done.stderr
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    done = launched(kind.train, runs[1])
    running.clear()
    assert done.returncode == 0, done.stderr
    killer.join(timeout=60)
    print(f"seconds from a kill to the next checkpoint: {[round(seconds, 1) for seconds in back[1:]]}")
    assert len(back) == kills
    straight, killed = (
        {path.name: path.read_bytes() for path in [run.work / CURVE, *(run.work / EXPORT).iterdir()]} for run in runs
    )
    assert killed == straight


@pytest.mark.slow
@pytest.mark.parametrize("shard_weights", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("name", ["teacher", "ode", "dmd"])
def test_fifty_steps_under_ray(name: str, shard_weights: bool, kinds: dict[str, Any], tmp_path: Path) -> None:
    """The losses of two workers and of one process agree at the learning rates of the laptop profile."""
    kind, changes = kinds[name], laptop_optimizers(name)
    alone, together = (kind.new_run(tmp_path / place, steps=50, **changes) for place in ("alone", "together"))
    kind.step(alone).export(tmp_path / "begin")
    kind.train(alone)
    together = on_two(replace(together, compute=replace(together.compute, shard_weights=shard_weights)))
    done = launched(kind.train, together)
    assert done.returncode == 0, done.stderr
    assert_same_losses(alone.work, together.work, steps=50)
    before, after = (
        load_file(folder / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "begin", together.work / EXPORT)
    )
    assert all(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("blocks."))


def test_an_error_of_the_user_is_reported_immediately(kinds: dict[str, Any], tmp_path: Path) -> None:
    run = on_two(kinds["ode"].new_run(tmp_path / "odd", steps=6, batch_size=3))
    last = launched(kinds["ode"].train, run).stderr.splitlines()[-1]
    assert last.startswith("ValueError: the batch of 3 does not divide over 2 workers")
