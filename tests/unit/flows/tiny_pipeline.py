"""Create a DVC pipeline of four stages that end immediately: download, two trained models, report."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

DVC = str(Path(sys.executable).with_name("dvc"))
STAGES = ["download", "train@a", "train@b", "report"]
PIPELINE = """\
stages:
  download:
    cmd: echo progress; echo ${download.clips} > clips.txt; echo '{"clips":${download.clips}}' > clips.json
    params: [download]
    outs: [clips.txt]
    plots: [{clips.json: {cache: false}}]
    meta: {gpu: false, timeout: 60, retries: 0}
  train:
    foreach: {a: 1, b: 2}
    do:
      cmd: ${train.cmd} && echo ${item} > ${key}.txt
      deps: [clips.txt]
      outs: ['${key}.txt']
      meta: {gpu: true, timeout: 60, retries: 0}
  report:
    cmd: cat a.txt b.txt > report.txt
    deps: [a.txt, b.txt]
    outs: [report.txt]
"""
PARAMS = """\
profile: tiny
download: {clips: 3}
train: {cmd: 'true'}
"""


def make(root: Path) -> Path:
    """Create the git repository ``root`` with a DVC pipeline in which no stage has been run."""
    (root / ".dvc").mkdir(parents=True)
    # The test writes the files of 'dvc init' itself, because the command takes a second.
    (root / ".dvc" / "config").touch()
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".dvcignore").write_text(".prefect\nmlruns\n")
    (root / ".gitignore").write_text("/.prefect\n/mlflow.db*\n/mlruns\n/clips.txt\n/a.txt\n/b.txt\n/report.txt\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text(PARAMS)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


# A second DVC project in a folder. Its first stage writes the params file of its second stage.
SECOND = """\
stages:
  params:
    matrix: {row: [x, y]}
    cmd: "echo 'clips: ${item.row}' > ${item.row}.yaml"
    outs: ['${item.row}.yaml']
  row:
    matrix: {row: [x, y]}
    cmd: cat ../clips.txt ${item.row}.yaml > ${item.row}.txt; echo '{"row":"${item.row}"}' > rows/${item.row}.json
    deps: [../clips.txt]
    params: ['${item.row}.yaml': [clips]]
    outs: ['${item.row}.txt']
    plots: ['rows/${item.row}.json': {cache: false}]
"""
SECOND_STAGES = ["download", *(f"ablation/dvc.yaml:{name}@{row}" for name in ("params", "row") for row in "xy")]


def add_second(root: Path) -> None:
    """Add the second DVC project to the repository ``root``."""
    for name in (".dvc", "rows"):
        (root / "ablation" / name).mkdir(parents=True)
    for name in ("config", ".gitignore"):
        shutil.copy(root / ".dvc" / name, root / "ablation" / ".dvc" / name)
    (root / "ablation" / "dvc.yaml").write_text(SECOND)
    with (root / ".gitignore").open("a") as file:
        file.write("/ablation/x.*\n/ablation/y.*\n")


def change(root: Path, section: str, **values: object) -> None:
    """Change entries in a section of params.yaml."""
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params[section].update(values)
    yaml.dump(params, root / "params.yaml")


def commit(root: Path) -> None:
    """Commit all files to git."""
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    author = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    subprocess.run(["git", "-C", str(root), *author, "commit", "--quiet", "-m", "tiny"], check=True)
