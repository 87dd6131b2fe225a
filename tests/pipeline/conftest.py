"""Create fresh copies of the project, like the clone of a user, in which tests run stages."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
# A user may have these secrets in the environment, but no file may contain a secret. The secrets are random, so that
# this file does not contain them. All workers of a test run, which share the files of the run, have the same secrets.
DRAWN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(16)
SECRETS = {
    name: f"canary{hashlib.sha256(f'{name} {DRAWN}'.encode()).hexdigest()}"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "GITHUB_TOKEN", "MLFLOW_TRACKING_PASSWORD")
}


# This proxy cannot reach servers of this machine, like the proxy of a company's firewall. No process listens at this
# port.
PROXY = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")


@dataclass(frozen=True)
class Clone:
    """A copy of the project with a params.yaml."""

    root: Path

    @property
    def env(self) -> dict[str, str]:
        """Return the environment variables that ``make`` would set, with secrets and a proxy."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "PREFECT_", "CAUSVID_"))}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            "DVC_NO_ANALYTICS": "1",
            "DO_NOT_TRACK": "true",
            **SECRETS,
            **PROXY,
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy. If the command fails, the error contains its output."""
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def leaks(self) -> list[str]:
        """Return the files of the copy that contain a secret, including logs, databases and caches."""
        words = [value.encode() for value in SECRETS.values()]
        files = [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]
        return [str(path) for path in files if any(word in path.read_bytes() for word in words)]

    def set(self, **values: Any) -> None:
        """Change entries of params.yaml, for example ``set(train_dmd__steps=3)``."""
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        for dotted, value in values.items():
            *path, last = dotted.split("__")
            place = params
            for key in path:
                place = place[key]
            place[last] = value
        yaml.dump(params, self.root / "params.yaml")

    def hashes(self) -> dict[str, dict[str, str]]:
        """Return the hashes of all outs in dvc.lock, by stage and path."""
        stages = YAML(typ="safe").load(self.root / "dvc.lock")["stages"]
        return {name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in stages.items()}


@pytest.fixture(scope="session")
def make_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """Return a function that copies all files that git does not ignore to a new folder, with the smoke profile."""

    def make(name: str) -> Clone:
        target = tmp_path_factory.mktemp(name) / "project"
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for relative in filter(None, names):
            is_output = relative.startswith("reports/") and Path(relative).name != "README.md"
            source = ROOT / relative
            if (source.is_file() or source.is_symlink()) and not is_output and source.name != "dvc.lock":
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / relative, follow_symlinks=source.is_file())
        clone = Clone(target)
        clone.run("git", "init", "--quiet")
        clone.run(sys.executable, "-m", "causvid.params", "use", "smoke")
        return clone

    return make


@pytest.fixture(scope="session")
def smoke(make_clone: Callable[[str], Clone], tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Clone:
    """Return a copy of the project after ``dvc repro`` of the smoke profile.

    Each xdist worker has one copy. Tests must undo all changes of the copy.
    """
    if worker_id == "master":
        return _smoke_run(make_clone)
    note = tmp_path_factory.getbasetemp().parent / "smoke.txt"  # this file contains the path of the first copy
    with FileLock(f"{note}.lock"):
        if not note.is_file():
            note.write_text(str(_smoke_run(make_clone).root))
    source, copy = note.read_text(), tmp_path_factory.mktemp("smoke") / "copy"
    shutil.copytree(source, copy, symlinks=True)
    with sqlite3.connect(copy / "mlflow.db") as db:  # later artifacts are stored in the copy
        db.execute("update experiments set artifact_location = replace(artifact_location, ?, ?)", (source, str(copy)))
    return Clone(copy)


def _smoke_run(make_clone: Callable[[str], Clone]) -> Clone:
    clone = make_clone("smoke")
    clone.run("dvc", "repro")
    return clone
