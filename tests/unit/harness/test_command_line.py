"""The help of a stage shows the complete commands of the stage in dvc.yaml."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from causvid.harness.command_line import commands_in_dvc

ROOT = Path(__file__).resolve().parents[3]
PIPELINE = """
stages:
  plain:
    cmd: exec python -m stages.plain --raw data/raw --out data/clips
  each:
    foreach:
      teacher: many
      student: few
    do:
      cmd: exec python -m stages.each --item ${key} --steps ${item} --crf ${crf}
  listed:
    foreach: [a, b]
    do:
      cmd: python -m stages.listed --item ${item}
  nested:
    foreach:
      one: {folder: data/one}
    do:
      cmd: python -m stages.nested --item ${key} --folder ${item.folder}
"""


def shown(stage: str, folder: Path) -> list[list[str]]:
    """Return the words of each command that the help shows, as a shell splits them."""
    heading, _, rest = commands_in_dvc(stage, folder).partition("\n\n")
    assert heading == "Complete command in dvc.yaml:"
    return [shlex.split(block, comments=True) for block in rest.replace("\\\n", " ").split("\n") if block.strip("# ")]


def test_a_command_is_shown_with_all_its_options_in_a_form_that_a_shell_accepts(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    assert shown("plain", tmp_path) == [["python", "-m", "stages.plain", "--raw", "data/raw", "--out", "data/clips"]]
    assert commands_in_dvc("plain", tmp_path).splitlines()[2:] == [
        "python -m stages.plain \\",
        "    --raw data/raw \\",
        "    --out data/clips",
    ]


def test_a_stage_with_items_has_one_command_for_each_item(tmp_path: Path) -> None:
    """A value that is not an item, but a param, stays a placeholder."""
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    text = commands_in_dvc("each", tmp_path)
    assert "# each@teacher\n" in text
    assert "# each@student\n" in text
    assert [words for words in shown("each", tmp_path) if words] == [
        ["python", "-m", "stages.each", "--item", "teacher", "--steps", "many", "--crf", "${crf}"],
        ["python", "-m", "stages.each", "--item", "student", "--steps", "few", "--crf", "${crf}"],
    ]
    assert [words[-1] for words in shown("listed", tmp_path) if words] == ["a", "b"]
    assert [words[-1] for words in shown("nested", tmp_path) if words] == ["data/one"]


@pytest.mark.parametrize("content", [None, "stages: [", "stages: 3", "- a", "stages: {plain: {desc: no command}}"])
def test_a_missing_or_damaged_pipeline_gives_one_line_that_names_the_file(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dvc.yaml").write_text(content)
    text = commands_in_dvc("plain", tmp_path)
    assert str(tmp_path) in text
    assert "dvc.yaml" in text
    assert "complete command" in text


@pytest.mark.parametrize("stage", ["train_dmd", "sample", "checksums", "table4"])
def test_help_of_a_stage_ends_with_its_commands(stage: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", "--help"]
    inside, outside = (
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        for folder in (ROOT, tmp_path)
    )
    assert f"python -m stages.{stage} \\\n    --" in inside
    assert inside.endswith(commands_in_dvc(stage, ROOT))
    assert f"{tmp_path} has no dvc.yaml" in outside
    for text in (inside, outside):
        assert "--out" in text


def test_a_wrong_option_does_not_read_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: [")
    done = subprocess.run(
        [sys.executable, "-m", "stages.train_dmd", "--nothing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "dvc.yaml" not in done.stdout + done.stderr
