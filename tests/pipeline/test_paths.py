"""The project, inputs in params.yaml and checkpoints may have any path, and may be any kind of link.

A cell is a combination of such paths. The test of a cell runs the first stages of the smoke pipeline on a folder of
videos, generates a video with a student, and exports the student. Eight cells run in this process. 36 cells, marked
slow, run under DVC and from the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from causvid.data.sources.toy_world import clip_frames
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.generate.command import app
from causvid.params import PROFILES, ROOT
from causvid.record import Normalisation, read_vae_config, student_of_params, write_record
from causvid.runtime.shapes import VideoShape
from causvid.wan.transformer.wan import as_causal, load_transformer
from stages import checksums, download, resample, train_vae
from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline

PROJECTS = {
    "plain": "project",
    "shell": 'it\'s & co; $HOME `x` "q" | <y>',
    "percent": "feature%2Fx%41",
    "url": "c?d=e#1&f",
    "brackets": "[x] (y) *",
    "composed": "\u00fcber caf\u00e9",
    "decomposed": "u\u0308ber cafe\u0301",
    "dash": "-rf",
    "long": "p" * 200,
    "newline": "a\nb\tc\\d",
}
NAMES = {
    "plain": "mine",
    "spaces": " my  videos ",
    "quotes": 'bob\'s "best"',
    "shell": "a&b;c|d$HOME$(e)`f`",
    "template": "${seed}",
    "percent": "%41%2F",
    "url": "a?b#c=d:e",
    "brackets": "[a] {b} (c) *",
    "composed": "v\u00efd\u00e9os",
    "decomposed": "vi\u0308de\u0301os",
    "dash": "--folder",
    "long": "v" * 200,
}
LINKS = ("none", "folder", "videos", "captions", "weights", "output", "inside")
CAPTION = "a red circle moves right over a black background"
VIDEO = VideoShape(height=32, width=32, frames=21, fps=8)


@dataclass(frozen=True)
class Cell:
    """A combination: keys of ``PROJECTS`` and ``NAMES`` (for the user's files), and the files that are links."""

    project: str
    name: str
    link: str

    @property
    def id(self) -> str:
        """Return the name of the cell in the output of pytest."""
        return f"project {self.project}, name {self.name}, link {self.link}"


def cells(count: int, step: int) -> list[Cell]:
    """Return combinations in which all projects, names and links occur equally often, up to a difference of one."""
    names, links = cycle(NAMES), cycle(LINKS)
    combinations = [Cell(project, next(names), next(links)) for _, project in zip(range(count * step), cycle(PROJECTS))]
    return combinations[::step]


FAST = [
    Cell("shell", "shell", "videos"),
    Cell("percent", "percent", "folder"),
    Cell("url", "url", "captions"),
    Cell("decomposed", "composed", "weights"),
    Cell("composed", "template", "output"),
    Cell("dash", "dash", "inside"),
    Cell("long", "long", "none"),
    Cell("newline", "quotes", "videos"),
]
SLOW = cells(36, 1)


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of a user: three videos with captions, weights of a VAE, and a trained student."""
    root = tmp_path_factory.mktemp("brought")
    (root / "videos").mkdir()
    for index in range(3):
        frames = clip_frames(CAPTION, index, video=VIDEO, seed=0)
        write_video(root / "videos" / f"{index} ü.mp4", frames, fps=VIDEO.fps, crf=10)
    (root / "captions.json").write_text(json.dumps({f"{index} ü.mp4": CAPTION for index in range(3)}))
    toy, checkpoints = ROOT / "data" / "inputs" / "toy_wan", root / "checkpoints"
    shutil.copytree(toy / "vae", root / "vae")
    shutil.copytree(toy / "vae", checkpoints / "vae")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(toy / part, checkpoints / "text_encoder" / part)
    record = student_of_params(PROFILES / "laptop.yaml")
    assert record.frames_per_block is not None
    as_causal(load_transformer(toy / "transformer"), record.frames_per_block).save_pretrained(checkpoints / "dmd")
    latents = Normalisation.of(read_vae_config(checkpoints / "vae"))
    write_record(type(record)(**{**vars(record), "latents": latents}), checkpoints / "dmd")
    return root


def lay_out(cell: Cell, brought: Path, project: Path, elsewhere: Path) -> Path:
    """Copy the files in ``brought`` to ``project``, and return the path of the checkpoint.

    The cell defines names and links.
    """
    name = NAMES[cell.name]
    folder, captions = project / "data" / "inputs" / name, project / "data" / "inputs" / f"{name[:190]}.json"
    weights, checkpoints = project / "data" / "inputs" / f"w{name[1:]}", project / f"{name[:190]}.checkpoints"
    elsewhere.mkdir()
    for source, target in ((brought / "videos", folder), (brought / "vae", weights)):
        shutil.copytree(source, target)
    shutil.copytree(brought / "checkpoints", checkpoints)
    shutil.copy(brought / "captions.json", captions)
    if cell.link == "folder":
        _behind_a_link(folder, elsewhere / name)
    elif cell.link == "inside":
        (folder / "sub").mkdir()
        _behind_a_link(folder / "sub", elsewhere / name)
        (folder / "circle").symlink_to(".")
    elif cell.link == "captions":
        _behind_a_link(captions, elsewhere / "0123")
    elif cell.link == "output":
        (elsewhere / "raw").mkdir()
        (project / "data" / "raw").symlink_to(elsewhere / "raw")
    elif cell.link in ("videos", "weights"):
        for file in (folder if cell.link == "videos" else weights).iterdir():
            _behind_a_link(file, elsewhere / f"blob {file.stem}")  # the file has no suffix, as in the cache of the hub
    checkpoint = checkpoints / "dmd"
    if cell.link != "none":
        for file in checkpoint.iterdir():
            _behind_a_link(file, elsewhere / f"checkpoint {file.stem}")
    yaml = YAML(typ="safe")  # the round-trip dump of YAML breaks names in flow mappings
    values = yaml.load(project / "params.yaml")
    values["download"] |= {
        "source": "folder",
        "folder": folder.relative_to(project).as_posix(),
        "captions": captions.relative_to(project).as_posix(),
    }
    values["train_vae"]["init"]["folder"] = weights.relative_to(project).as_posix()
    values["train_vae"] |= {"steps": 0, "held_out_clips": 1}
    yaml.dump(values, project / "params.yaml")
    return checkpoint


def _behind_a_link(path: Path, target: Path) -> None:
    path.rename(target)
    path.symlink_to(target)


def check(project: Path, cell: Cell) -> None:
    """Check that the first stages read all three videos and the weights."""
    rows = manifest.read_manifest(project / "data" / "clips")
    assert sorted(row["source"] for row in rows) == [f"{index} ü.mp4" for index in range(3)]
    clips = [project / "data" / "clips" / row["path"] for row in rows]
    assert {read_frames(clip).shape for clip in clips} == {(21, 32, 32, 3)}
    assert (project / "data" / "checkpoints" / "vae" / "config.json").is_file()
    assert not (project / "data" / "raw").is_symlink()
    assert sorted(path.name for path in project.parent.iterdir()) == sorted(["elsewhere", project.name])
    checksum = (project / "data" / "checksums" / "download.captions").read_text()
    assert checksum.strip() != "absent"
    assert (project / "mlflow.db").is_file()


@pytest.mark.parametrize("cell", FAST, ids=lambda cell: cell.id)
def test_stages_accept_any_path_in_one_process(
    cell: Cell, brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / PROJECTS[cell.project]
    for name in ("scratch", "toy_world", "toy_wan/vae"):
        shutil.copytree(ROOT / "data" / "inputs" / name, project / "data" / "inputs" / name)
    for name in ("stages", "causvid", "requirements"):
        (project / name).symlink_to(ROOT / name)
    shutil.copy(PROFILES / "smoke.yaml", project / "params.yaml")
    checkpoint = lay_out(cell, brought, project, tmp_path / "elsewhere")
    monkeypatch.chdir(project)
    for name in ("DVC_STAGE", "MLFLOW_TRACKING_URI", "CAUSVID_WORK_DIR"):
        monkeypatch.delenv(name, raising=False)
    data, reports = Path("data"), Path("reports")
    checksums.main(out=data / "checksums", params=Path("params.yaml"))
    download.main(out=data / "raw", metrics=reports / "download.json", params=Path("params.yaml"))
    resample.main(raw=data / "raw", out=data / "clips", metrics=reports / "resample.json", params=Path("params.yaml"))
    train_vae.main(
        clips=data / "clips", out=data / "checkpoints" / "vae", samples=data / "samples",
        metrics=reports / "train_vae.json", curve=reports / "curve.csv", params=Path("params.yaml"),
    )  # fmt: skip
    check(project, cell)
    monkeypatch.chdir(tmp_path)
    assert not Path("params.yaml").exists()  # generate needs the training record, and not params.yaml
    generate_and_export(cell, checkpoint, tmp_path, _invoke)


def _invoke(*command: str) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output


def generate_and_export(cell: Cell, checkpoint: Path, root: Path, run: Callable[..., None]) -> None:
    """Generate a video with the checkpoint, and export the checkpoint. Output paths contain the name of the cell."""
    out = root / "elsewhere" / NAMES[cell.name]
    videos, exported = out / "videos", out / "exported"
    prompt = ("--prompt", CAPTION, "--seconds", "0.5")
    run("generate", f"--checkpoint={checkpoint}", f"--out={videos}", *prompt)
    (name,) = json.loads((videos / "videos.json").read_text())["videos"]
    run("export", f"--checkpoint={checkpoint}", f"--out={exported}")
    run("generate", f"--checkpoint={exported}", f"--out={videos} again", *prompt)
    assert (videos / name).read_bytes() == (out / "videos again" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("cell", SLOW, ids=lambda cell: cell.id)
def test_stages_accept_any_path_under_dvc(
    cell: Cell, brought: Path, tmp_path: Path, make_clone: Callable[[str], Clone]
) -> None:
    copy = make_clone("cell").root
    project = tmp_path / PROJECTS[cell.project]
    copy.rename(project)
    checkpoint = lay_out(cell, brought, project, tmp_path / "elsewhere")
    clone = Clone(project)
    clone.run("dvc", "repro", "train_vae")
    check(project, cell)
    assert set(json.loads(clone.run("dvc", "status", "train_vae", "resample", "download", "--json").stdout)) == set()

    def run(*command: str) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        program = [sys.executable, "-m", "causvid.generate.command", *command]
        done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    generate_and_export(cell, checkpoint, tmp_path, run)
