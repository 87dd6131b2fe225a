"""More workers change no bytes or only rounding errors, and a killed training continues from its checkpoint."""

from __future__ import annotations

import csv
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline

DMD = ("--latents", "data/lmdb/latents", "--prompts", "data/prompts", "--teacher", "data/checkpoints/teacher",
       "--student", "data/checkpoints/ode_init", "--vae", "data/checkpoints/vae")  # fmt: skip


def apart(clone: Clone, work: Path) -> dict[str, str]:
    """Return the environment of the clone with a separate work folder and MLflow database.

    The clone does not change.
    """
    return clone.env | {"CAUSVID_WORK_DIR": str(work), "MLFLOW_TRACKING_URI": f"sqlite:///{work}.db"}


def stage(clone: Clone, name: str, *options: str, params: Path, work: Path) -> None:
    """Run one stage without DVC, with a separate params file and work folder."""
    command = (sys.executable, "-m", f"stages.{name}", *options, "--params", str(params))
    done = subprocess.run(
        command,
        cwd=clone.root,
        env=apart(clone, work),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def variant(clone: Clone, path: Path, **values: object) -> Path:
    """Write the params file of the clone with changed values to ``path``."""
    shutil.copy2(clone.root / "params.yaml", path.with_name("params.yaml"))
    copy = Clone(path.parent)
    copy.set(**values)
    (path.parent / "params.yaml").rename(path)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def losses(curve: Path) -> dict[str, list[float]]:
    with curve.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_latents_and_ode_pairs_with_ray_have_the_same_bytes(smoke: Clone, tmp_path: Path) -> None:
    two = variant(smoke, tmp_path / "two.yaml", compute__workers=2)
    stage(smoke, "extract_latents", "--clips", "data/clips", "--vae", "data/checkpoints/vae",
          "--out", str(tmp_path / "latents"), "--metrics", str(tmp_path / "latents.json"), params=two, work=tmp_path / "work")  # fmt: skip
    assert contents(tmp_path / "latents") == contents(smoke.root / "data" / "latents")
    stage(smoke, "generate_ode_pairs", "--prompts", "data/prompts", "--vae", "data/checkpoints/vae",
          "--teacher", "data/checkpoints/teacher", "--out", str(tmp_path / "pairs"), "--metrics", str(tmp_path / "pairs.json"),
          params=two, work=tmp_path / "work")  # fmt: skip
    assert contents(tmp_path / "pairs") == contents(smoke.root / "data" / "ode_pairs")


def test_dmd_with_two_workers_has_the_same_losses(smoke: Clone, tmp_path: Path) -> None:
    curves = []
    for workers in (1, 2):
        params = variant(smoke, tmp_path / f"{workers}.yaml", compute__workers=workers, train_dmd__steps=3)
        folder = tmp_path / str(workers)
        folder.mkdir()
        stage(smoke, "train_dmd", *DMD, "--out", str(folder / "out"), "--metrics", str(folder / "m.json"),
              "--curve", str(folder / "curve.csv"), params=params, work=folder / "work")  # fmt: skip
        curves.append(losses(folder / "curve.csv"))
    assert curves[0].keys() == curves[1].keys()
    for name, values in curves[0].items():
        assert values == pytest.approx(curves[1][name], rel=1e-4), name


def test_a_killed_dmd_training_continues_and_gives_the_same_weights(smoke: Clone, tmp_path: Path) -> None:
    params = variant(smoke, tmp_path / "long.yaml", train_dmd__steps=30, train_dmd__checkpoint_every=5)
    options = [
        *DMD,
        "--out",
        str(tmp_path / "out"),
        "--metrics",
        str(tmp_path / "m.json"),
        "--curve",
        str(tmp_path / "curve.csv"),
    ]
    work = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train_dmd", *options, "--params", str(params)],
        cwd=smoke.root, env=apart(smoke, work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(work.glob("train_dmd/*/checkpoints/step-0000010")):
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert not list(work.glob("train_dmd/*/checkpoints/step-0000030")), "the training was killed too late"
    stage(smoke, "train_dmd", *options, params=params, work=work)
    weights, curve = contents(tmp_path / "out"), (tmp_path / "curve.csv").read_text()
    shutil.rmtree(tmp_path / "out")
    stage(smoke, "train_dmd", *options, params=params, work=tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == weights
    assert (tmp_path / "curve.csv").read_text() == curve
