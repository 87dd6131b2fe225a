"""The stage checksums writes one file per path in params.yaml, or prints one sentence before any stage runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid.harness import inputs
from causvid.params import PROFILES, ROOT
from causvid.profile import PATHS
from stages import checksums

FILES = (
    "data/inputs/scratch",
    "data/inputs/toy_world",
    "data/inputs/toy_wan/vae",
    "data/inputs/videos",
    "requirements",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with the smoke profile and copies of the files that the profile names."""
    for name in FILES:
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAUSVID_WORK_DIR", str(tmp_path / "work"))
    return tmp_path


def take(**changes: Any) -> dict[str, str]:
    """Run the stage on the smoke profile with ``changes``, and return the files that the stage wrote."""
    yaml = YAML()
    values = yaml.load(PROFILES / "smoke.yaml")
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = values
        for key in parents:
            place = place[key]
        place[last] = value
    yaml.dump(values, Path("params.yaml"))
    checksums.main(out=Path("data/checksums"), params=Path("params.yaml"))
    return {file.name: file.read_text().strip() for file in Path("data/checksums").iterdir()}


def test_each_path_has_a_file(project: Path) -> None:
    found = take()
    assert set(found) == {name for name, rule in PATHS.items() if not rule.counted_by}
    assert found["download.captions"] == "absent"
    assert found["encode_prompts.captions"] == found["pack_lmdb.latents.folder"] == inputs.BY_DVC
    digests = set(found.values()) - {"absent", inputs.BY_DVC}
    assert all(len(digest) == 64 for digest in digests)
    assert take() == found


def rewritten(path: Path) -> None:
    """Change the content of a file, but not the size, the modification time and the inode."""
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=times)


def replaced(path: Path) -> None:
    """Change the content and the inode of a file, but not the size and the modification time."""
    beside = path.with_name(".beside")
    shutil.copy2(path, beside)
    rewritten(beside)
    beside.replace(path)


def removed_and_made(path: Path) -> None:
    """Change the content of a file, but not the size and the modification time. The file system may reuse the inode."""
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.unlink()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=times)


@pytest.mark.parametrize("name", [name for name, rule in PATHS.items() if not rule.counted_by])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_every_change_behind_a_path_changes_only_the_file_of_that_path(project: Path, name: str, kind: str) -> None:
    user = project / "data" / "inputs" / "mine"
    file = user / "sub" / "a.bin" if kind == "folder" else user
    changes = {name.replace(".", "__"): "data/inputs/mine"}
    states = []
    if PATHS[name].may_be_missing:
        states.append(take(**changes))  # in this state, the file is absent
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 2**20)
    states.append(take(**changes))
    for change in (rewritten, replaced, removed_and_made):
        change(file)
        states.append(take(**changes))
        change(file)  # the second change flips the same bit again, which restores the content
    if PATHS[name].may_be_missing:
        shutil.rmtree(user) if kind == "folder" else user.unlink()
        states.append(take(**changes))
        assert states[-1][name] == states[0][name] == "absent"
    distinct = {state[name] for state in states}
    assert len(distinct) == 2 + PATHS[name].may_be_missing
    for other in set(states[0]) - {name}:
        assert len({state[other] for state in states}) == 1


def test_a_captions_file_outside_of_the_folder_has_its_own_checksum(project: Path) -> None:
    changes = {"download__folder": "data/inputs/mine", "download__captions": "data/inputs/mine.json"}
    without = take(**changes)
    (project / "data" / "inputs" / "mine.json").write_text('{"a.mp4": "the first"}')
    first = take(**changes)
    (project / "data" / "inputs" / "mine.json").write_text('{"a.mp4": "a second"}')
    second = take(**changes)
    assert len({found["download.captions"] for found in (without, first, second)}) == 3
    assert len({found["download.folder"] for found in (without, first, second)}) == 1


def test_an_unchanged_checksum_file_is_not_written(project: Path) -> None:
    take()
    before = {file.name: file.stat().st_mtime_ns for file in Path("data/checksums").iterdir()}
    take(download__captions="elsewhere.json")
    assert {file.name: file.stat().st_mtime_ns for file in Path("data/checksums").iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video__frames": 20}, r"video.frames is 20; the VAE needs 4n\+1 frames .* use 17 or 21"),
        ({"video__height": 36}, "video.height is 36; the VAE needs a multiple of 8"),
        ({"download__folder": "s3://bucket"}, "download.folder is 's3://bucket', a URL"),
        ({"evaluate__feature_vae": "nowhere"}, "evaluate.feature_vae is nowhere, which does not exist"),
    ],
)
def test_invalid_params_are_one_sentence(project: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^checksums: .*{message}"):
        take(**changes)


def test_a_data_folder_that_is_a_link_is_one_sentence(project: Path) -> None:
    (project / "data").rename(project / "disk")
    (project / "data").symlink_to("disk")
    with pytest.raises(SystemExit, match="^checksums: data is a link to disk"):
        take()
