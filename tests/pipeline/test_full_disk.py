"""A file system that is really full: one sentence, nothing half-written, and the same command goes on when there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from causvid.params import ROOT
from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline

OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]
# Work and outs on a small file system, then the same command with room.
SCRIPT = """
mount -t tmpfs -o size="$1" none "$2" || exit 70
shift; disk="$1"; shift
mkdir "$disk/work"
"$@" 2> "$disk.error"
echo $? > "$disk.code"
ls -A "$disk" > "$disk.left"
mount -o remount,size=256m none "$disk" || exit 71
"$@" || exit 72
cp -r "$disk/out" "$disk.out"
"""


@pytest.fixture(autouse=True)
def _own_mounts() -> None:
    if subprocess.run([*OWN_MOUNTS, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives us no mounts of our own")


@pytest.mark.parametrize(
    ("name", "size", "options", "same"),
    [
        ("download", "40k",
         [], "data/raw"),
        ("extract_latents", "40k", ["--clips", "data/clips", "--vae", "data/checkpoints/vae"], "data/latents"),
        ("train_teacher", "1m",
         ["--latents", "data/lmdb/latents", "--prompts", "data/prompts", "--vae", "data/checkpoints/vae",
          "--curve", "{disk}/curve.csv"], "data/checkpoints/teacher"),
        ("pack_lmdb", "40k", ["--item", "ode_pairs"], "data/lmdb/ode_pairs"),
    ],
)  # fmt: skip
def test_a_full_disk(smoke: Clone, tmp_path: Path, name: str, size: str, options: list[str], same: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", f"stages.{name}", *(option.format(disk=disk) for option in options)]
    command += ["--out", f"{disk}/out", "--metrics", f"{disk}/metrics.json"]
    done = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", SCRIPT, "sh", size, str(disk), *command],
        cwd=smoke.root,
        env=smoke.env | {"CAUSVID_WORK_DIR": f"{disk}/work", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    error = Path(f"{disk}.error").read_text()
    assert Path(f"{disk}.code").read_text() == "1\n", error
    sentence = error.strip().splitlines()[-1]
    assert sentence.startswith(f"{name}: the disk is full ("), error
    assert "Traceback" not in error
    assert Path(f"{disk}.left").read_text() == "work\n", "something stands where finished things should be"
    finished = {p.relative_to(f"{disk}.out"): p.read_bytes() for p in Path(f"{disk}.out").rglob("*") if p.is_file()}
    expected = {p.relative_to(smoke.root / same): p.read_bytes() for p in (smoke.root / same).rglob("*") if p.is_file()}
    assert finished == expected


@pytest.mark.parametrize("disks", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_under_a_flow(tmp_path: Path, disks: int) -> None:
    """Wherever it happens, in a stage, in DVC's cache or in its locks: the same command, when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = [
        sys.executable,
        "-m",
        "tests.pipeline.full_disk_rounds",
        str(disk),
        str(tmp_path / "log"),
        str(disks),
        "0",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run([*OWN_MOUNTS, *program], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["full"] >= 1
    assert found["told"] == found["full"], found["log"]
    assert found["half_written"] == 0
    assert found["different"] == 0, found["log"]
