"""The commands of the installed package work in an empty folder without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from causvid.params import PROFILES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the content of a wheel, as pip would install the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = ROOT / ".tools" / "bin" / "uv"
    subprocess.run([uv, "build", "--offline", "--wheel", "--out-dir", folder, ROOT], capture_output=True, check=True)
    (wheel,) = folder.glob("causvid-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_help_and_plan_run_from_a_wheel(site: Path, tmp_path: Path) -> None:
    shutil.copy(PROFILES / "laptop.yaml", tmp_path / "params.yaml")
    helped = run(
        site,
        tmp_path,
        "-c",
        "import causvid; print(causvid.__file__)\nfrom causvid.generate.command import app; app(['--help'])",
    )
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith(str(site))
    assert {"generate", "export"} <= set(helped.stdout.split())
    planned = run(site, tmp_path, "-m", "causvid.plan", "params.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "train_dmd" in planned.stdout


def test_a_wrong_key_is_named_from_a_wheel(site: Path, tmp_path: Path) -> None:
    text = (PROFILES / "laptop.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("  fps: 8", "  fpz: 8"), encoding="utf-8")
    planned = run(site, tmp_path, "-m", "causvid.plan", "mine.yaml")
    assert planned.returncode == 1
    assert planned.stderr.startswith("plan: mine.yaml: video.fps: this key is missing (line ")
    assert "video.fpz: unknown key (found 8), did you mean video.fps? (line " in planned.stderr


def test_what_only_the_repository_has_is_named(site: Path, tmp_path: Path) -> None:
    used = run(site, tmp_path, "-m", "causvid.params", "use", "laptop")
    assert used.returncode == 1
    assert "there is no profile 'laptop'; known: none, in " in used.stderr
