"""The command behind ``make repro`` checks first, hides DVC's hints, and ends with the last block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from causvid import params
from causvid.repro import without_hints

SAYS = "import sys; print('Running stage'); sys.exit(int(sys.argv[1]))"


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(params.ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "causvid.repro", *command], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the params and the input files of the smoke profile."""
    params.use("smoke", tmp_path / "params.yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inputs").symlink_to(params.ROOT / "data" / "inputs")
    return tmp_path


def test_the_last_block_follows_the_output_of_the_command(folder: Path) -> None:
    process = start(folder, sys.executable, "-c", SAYS, "0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    lines = [line for line in output.splitlines() if not line.startswith("machine busy")]
    assert lines[:2] == ["Running stage", ""]
    assert lines[2].startswith("smoke: ")
    assert lines[-1] == "no report yet"


def test_the_exit_code_of_the_command_is_kept(folder: Path) -> None:
    process = start(folder, sys.executable, "-c", SAYS, "7")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 7
    assert "report" not in output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  fps: 8", "  fps: eight", "params.yaml: video.fps: "),
        ("  fps: 8", "  fpz: 8", "video.fpz: unknown key (found 8), did you mean video.fps? (line "),
    ],
)
def test_a_wrong_params_file_starts_nothing(folder: Path, old: str, new: str, said: str) -> None:
    file = folder / "params.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    process = start(folder, sys.executable, "-c", SAYS, "0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in output
    assert output.endswith("nothing was started\n")
    assert "Running stage" not in output


def test_ctrl_c_waits_for_the_command(folder: Path) -> None:
    """The command needs a moment to put outputs back, and its last line must appear before the prompt."""
    program = """\
import pathlib, signal, sys, time
pathlib.Path("started").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    print("stopped, outputs are back")
    sys.exit(130)
"""
    process = start(folder, sys.executable, "-c", program)
    deadline = time.monotonic() + 120
    while not (folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # the program has entered the try statement
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.endswith("stopped, outputs are back\n")


def test_hints_of_dvc_and_the_blank_lines_around_them_are_left_out() -> None:
    output = """\
Stage 'a' didn't change, skipping
Running stage 'b':

Updating lock file 'dvc.lock'

To track the changes with git, run:

\tgit add dvc.lock

To enable auto staging, run:

\tdvc config core.autostage true
Use `dvc push` to send your updates to remote storage.
"""
    assert "".join(without_hints(output.splitlines(keepends=True))) == (
        "Stage 'a' didn't change, skipping\nRunning stage 'b':\n\nUpdating lock file 'dvc.lock'\n"
    )
