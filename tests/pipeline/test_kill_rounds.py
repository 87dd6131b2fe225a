"""A flow survives SIGKILL of anything at any time: the same command again, no manual step, the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from causvid.params import ROOT

pytestmark = pytest.mark.pipeline


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
