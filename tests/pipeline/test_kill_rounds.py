"""A flow survives SIGKILL of anything at any time: the same command again, no manual step, the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from causvid.params import ROOT
from tests.pipeline.conftest import Clone
from tests.pipeline.kill_rounds import dvcs

pytestmark = pytest.mark.pipeline
MEASURED = {"measure_latency", "report"}  # stages whose outs hold times


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_flows_end_like_undisturbed_ones(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, "-m", "tests.pipeline.kill_rounds", str(tmp_path / "project"), str(kills), "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["stuck"] == 0, found["log"]
    assert found["different"] == 0
    assert found["kills"] == kills
    assert found["rounds"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_kills_of_the_real_flow(smoke: Clone, make_clone: Callable[[str], Clone]) -> None:
    """In turn everything, so that the command has to be given again, and dvc alone, which the flow tries again."""
    expected, dice, hit = smoke.hashes(), random.Random(0), list[str]()
    while len(hit) < 10:
        clone, finished = make_clone("killed"), False
        while not finished:
            before = len(hit)
            with (clone.root / "flow.log").open("w") as log:
                command = [sys.executable, "-m", "flows.distill"]
                flow = subprocess.Popen(command, cwd=clone.root, env=clone.env, stdout=log, stderr=log)
            while len(hit) < 10:
                with suppress(subprocess.TimeoutExpired):
                    flow.wait(dice.uniform(8, 45))
                    break
                hit += [kill(flow.pid, everything=len(hit) % 2 == 0)]
            finished = flow.wait() == 0
            assert finished or len(hit) > before, (clone.root / "flow.log").read_text()[-3000:]
        made = clone.hashes()
        assert {name: made[name] for name in made if name not in MEASURED} == {
            name: expected[name] for name in expected if name not in MEASURED
        }
        print(hit)


def kill(pid: int, *, everything: bool) -> str:
    """SIGKILL for dvc alone, where there is one, or for the flow and all below it; says what was hit."""
    alone = [] if everything else list(dvcs(pid))
    for process in alone or [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        with suppress(psutil.Error):
            process.kill()
    return "dvc" if alone else "everything"
