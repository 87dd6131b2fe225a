"""Neither Ctrl-C nor an error in params.yaml costs a finished model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline.conftest import Clone

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]
MODEL = "data/checkpoints/dmd"


def content(clone: Clone) -> dict[str, bytes]:
    """Return the bytes of the student and of its metrics and curve."""
    files = [path for folder in (MODEL, "reports/train_dmd") for path in (clone.root / folder).rglob("*")]
    return {path.relative_to(clone.root).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def clone(smoke: Clone, tmp_path: Path) -> Clone:
    """Return a copy of the finished project, because interrupted runs stay in its MLflow store."""
    return replace(smoke, root=Path(shutil.copytree(smoke.root, tmp_path / "project", symlinks=True)))


def test_ctrl_c_in_the_training_keeps_the_finished_student(clone: Clone) -> None:
    before = content(clone)
    clone.set(train_dmd__steps=1_000_000, train_dmd__checkpoint_every=2)
    log = clone.root.parent / "dvc.log"
    with log.open("w") as file:
        dvc = subprocess.Popen(
            ["dvc", "repro", "train_dmd"], cwd=clone.root, env=clone.env, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 600
        while "train_dmd: " not in log.read_text():  # a line of progress
            assert dvc.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert not (clone.root / MODEL).exists()
        os.killpg(dvc.pid, signal.SIGINT)
        assert dvc.wait(120) != 0
    output = log.read_text()
    assert content(clone) == before
    assert f"train_dmd: the previous {MODEL} and reports/train_dmd/" in output
    assert "train_dmd: stopped at step " in output
    assert " of 1000000; the checkpoint of step " in output
    assert "is kept; run the same command again to continue" in output


def test_a_wrong_type_in_params_yaml_keeps_the_finished_student(clone: Clone) -> None:
    before = content(clone)
    clone.set(train_dmd__guidance_scale="high")
    single = clone.run(
        "dvc", "repro", "-s", "train_dmd", check=False
    )  # without the stage checksums, which checks first
    assert single.returncode != 0
    assert "train_dmd.guidance_scale: Input should be a valid number" in single.stderr
    assert content(clone) == before
    checked = clone.run(sys.executable, "-m", "causvid.repro", "dvc", "repro", check=False)
    assert checked.returncode == 1
    assert "params.yaml: train_dmd.guidance_scale: Input should be a valid number" in checked.stderr
    assert "Running stage" not in checked.stdout
    assert content(clone) == before
