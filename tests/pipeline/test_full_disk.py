"""On a full disk, a stage fails with one sentence and without incomplete outs, and the same command can continue."""

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
# Run a command with its work folder and outs on a small file system. Then enlarge the file system, and run the command
# again.
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
        pytest.skip("this kernel does not allow mount namespaces for users")


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
def test_a_stage_continues_after_a_full_disk(
    smoke: Clone, tmp_path: Path, name: str, size: str, options: list[str], same: str
) -> None:
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
    assert Path(f"{disk}.left").read_text() == "work\n", "the file system has incomplete outs"
    finished = {p.relative_to(f"{disk}.out"): p.read_bytes() for p in Path(f"{disk}.out").rglob("*") if p.is_file()}
    expected = {p.relative_to(smoke.root / same): p.read_bytes() for p in (smoke.root / same).rglob("*") if p.is_file()}
    assert finished == expected


@pytest.mark.parametrize("disks", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_flow_continues_after_a_full_disk(tmp_path: Path, disks: int) -> None:
    """The disk may become full in a stage, or while DVC writes its cache or its locks."""
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
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["full"] >= 1
    assert counts["told"] == counts["full"], counts["log"]
    assert counts["half_written"] == 0
    assert counts["different"] == 0, counts["log"]
