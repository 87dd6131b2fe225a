"""After a SIGKILL of any process at any time, the same command gives the same bytes, without manual repair."""

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
MEASURED = {"measure_latency", "report"}  # stages whose outs contain measured times


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_flows_give_the_result_of_an_undisturbed_flow(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, "-m", "tests.pipeline.kill_rounds", str(tmp_path / "project"), str(kills), "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["stuck"] == 0, counts["log"]
    assert counts["different"] == 0
    assert counts["kills"] == kills
    assert counts["rounds"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_complete_flow_survives_ten_kills(smoke: Clone, make_clone: Callable[[str], Clone]) -> None:
    """Some kills hit all processes, and then the test repeats the command.

    Other kills hit dvc, and the flow tries again.
    """
    expected, draw, killed = smoke.hashes(), random.Random(0), list[str]()
    while len(killed) < 10:
        clone, finished = make_clone("killed"), False
        while not finished:
            before = len(killed)
            with (clone.root / "flow.log").open("w") as log:
                command = [sys.executable, "-m", "flows.distill"]
                flow = subprocess.Popen(command, cwd=clone.root, env=clone.env, stdout=log, stderr=log)
            while len(killed) < 10:
                with suppress(subprocess.TimeoutExpired):
                    flow.wait(draw.uniform(8, 45))
                    break
                killed += [kill(flow.pid, everything=len(killed) % 2 == 0)]
            finished = flow.wait() == 0
            assert finished or len(killed) > before, (clone.root / "flow.log").read_text()[-3000:]
        hashes = clone.hashes()
        assert {name: hashes[name] for name in hashes if name not in MEASURED} == {
            name: expected[name] for name in expected if name not in MEASURED
        }
        print(killed)


def kill(pid: int, *, everything: bool) -> str:
    """Send SIGKILL to dvc only, or to the flow and all its descendants, and return which processes were killed.

    dvc can be killed only while dvc is running.
    """
    alone = [] if everything else list(dvcs(pid))
    for process in alone or [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        with suppress(psutil.Error):
            process.kill()
    return "dvc" if alone else "everything"
