"""Params files are read, replaced and changed, and an error names every wrong key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid import params
from causvid.methods.teacher.config import TeacherConfig
from causvid.training.config import OptimizerConfig
from causvid.training.pretrained import Init

SMOKE = (params.PROFILES / "smoke.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A section with numbers, strings and a nested entry."""

    rate: float
    count: int
    names: tuple[str, ...]
    init: Init


VALID: dict[str, Any] = {
    "rate": 0.5,
    "count": 3,
    "names": ["a"],
    "init": {"folder": "x", "hub": None, "revision": None},
}


def file_with(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = SMOKE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_profile_can_be_read(tmp_path: Path) -> None:
    assert params.read(file_with(tmp_path))["profile"] == "smoke"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds list, not sections"),
        ("", "holds NoneType, not sections"),
        ("a: [1", "is not valid YAML"),
        ("a: 1\na: 2", "is not valid YAML"),
    ],
)
def test_an_invalid_params_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        params.read(path)


def test_the_error_for_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; .*make profile"):
        params.read(tmp_path / "params.yaml")


def test_a_section_becomes_its_dataclass(tmp_path: Path) -> None:
    path = file_with(tmp_path, ("learning_rate: 2.0e-3", 'learning_rate: "1e-4"'))
    config = params.section(path, "train_teacher", TeacherConfig)
    assert isinstance(config.optimizer, OptimizerConfig)
    assert config.optimizer.learning_rate == 1e-4  # a number in quotes is read as a number
    assert config.optimizer.betas == (0.9, 0.99)
    assert params.section(path, "model.text_tokens", int) == 12
    with pytest.raises(ValueError, match="missing section train_techer"):
        params.section(path, "train_techer", TeacherConfig)


def test_every_wrong_field_of_a_section_is_named() -> None:
    value = {**VALID, "rate": "fast", "count": 2.5, "extra": 1, "init": {**VALID["init"], "branch": "main"}}
    del value["names"]
    with pytest.raises(ValueError, match="toy.rate") as error:
        params.build(Toy, value, name="toy")
    for wrong in ("toy.count", "toy.names", "toy.extra", "toy.init.branch", "'fast'", "2.5"):
        assert wrong in str(error.value)


def test_an_error_of_a_dataclass_keeps_its_message() -> None:
    wrong = {**VALID, "init": {"folder": "x", "hub": "org/model", "revision": None}}
    with pytest.raises(ValueError, match=r"toy.init: .*init.hub is org/model without init.revision"):
        params.build(Toy, wrong, name="toy")
    assert params.build(Toy, VALID, name="toy").init.folder == Path("x")


def test_use_copies_a_profile(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_text("mine")
    params.use("smoke", target)
    assert target.read_text(encoding="utf-8") == SMOKE
    assert list(tmp_path.iterdir()) == [target]


def test_use_of_an_unknown_profile_lists_the_known_profiles_and_writes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_text("mine")
    with pytest.raises(ValueError, match="no profile 'gpu'; known: .*laptop, smoke, toy-wan, wan-1.3b"):
        params.use("gpu", target)
    assert target.read_text() == "mine"


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_vary_changes_only_the_named_keys(tmp_path: Path) -> None:
    base, out = file_with(tmp_path), tmp_path / "new" / "params.yaml"
    init = "{folder: data/mine, hub: null, revision: null}"
    params.vary(base, ["seed=7", "model.frames_per_block=null", f"train_teacher.init={init}", "profile=1e-3"], out)
    before, after = leaves(params.read(base)), leaves(params.read(out))
    assert {key: value for key, value in after.items() if before[key] != value} == {
        "seed": 7,
        "model.frames_per_block": None,
        "train_teacher.init.folder": "data/mine",
        "profile": 0.001,
    }
    assert [path.name for path in out.parent.iterdir()] == ["params.yaml"]


def test_changes_can_come_from_files_and_the_last_change_is_applied(tmp_path: Path) -> None:
    base, out, file = file_with(tmp_path), tmp_path / "out.yaml", tmp_path / "rows.yaml"
    file.write_text("rows:\n  mine: {seed: 5, sample.videos: 9}\n  none: {}\n")
    params.vary(base, [f"{file}:rows.mine", f"{file}:rows.none", "seed=6"], out)
    found = params.read(out)
    assert (found["seed"], found["sample"]["videos"]) == (6, 9)
    params.vary(base, ["seed=6", f"{file}:rows.mine"], out)
    assert params.read(out)["seed"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sed=1", "params.yaml: unknown key sed"),
        ("train_teacher.step=1", r"params.yaml: unknown key train_teacher.step, did you mean train_teacher.steps\?"),
        ("seed.one=1", "params.yaml: unknown key seed.one"),
        ("nothing.at.all=1", "params.yaml: unknown key nothing.at.all"),
        ("train_teacher.init={folder: x}", "missing key train_teacher.init.hub"),
        ("seed=[1", "seed: .* is not valid YAML"),
        ("seed", "'seed' is no change: write dotted.key=value, or FILE:section"),
        ("no.yaml:rows", "no.yaml does not exist"),
        ("FILE:rows.yours", "rows.yaml: missing section rows.yours"),
        ("FILE:rows.mine.seed", "holds int, not changes"),
        ("FILE:rows", "unknown key mine"),
    ],
)
def test_an_invalid_change_is_named_and_nothing_is_written(tmp_path: Path, change: str, message: str) -> None:
    base, out, file = file_with(tmp_path), tmp_path / "out.yaml", tmp_path / "rows.yaml"
    file.write_text("rows: {mine: {seed: 5}}")
    with pytest.raises(ValueError, match=message):
        params.vary(base, [change.replace("FILE", str(file))], out)
    assert not out.exists()


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "causvid.params"]
    env = {"PYTHONPATH": str(params.ROOT)}
    done = subprocess.run([*command, "use", "smoke"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "params.yaml is now the profile smoke\n"
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == SMOKE
    varied = [*command, "set", "params.yaml", "--out", "runs/1/params.yaml", "seed=1", "model.frames_per_block=null"]
    subprocess.run(varied, cwd=tmp_path, env=env, check=True)
    assert params.read(tmp_path / "runs/1/params.yaml")["seed"] == 1
    wrong = ["set", "params.yaml", "--out", "other.yaml", "sed=1"]
    for arguments, said in [(["use", "nope"], "known:"), (wrong, "params.yaml: unknown key sed"), ([], "usage:")]:
        failed = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert failed.returncode != 0
        assert said in failed.stderr
        assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"seed: 0\nprofile: caf\xe9\n", "byte 0xE9 in line 2"),
        ("profile: 'ビデオ'\n".encode("shift-jis"), "byte 0x83 in line 1"),
        (b"# \xfcber\nseed: 0\n", "byte 0xFC in line 1"),
    ],
)
@pytest.mark.parametrize("pure", [False, True], ids=["in C", "in Python"])
def test_a_params_file_in_another_encoding_is_named_with_the_byte_and_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pure: bool, content: bytes, place: str
) -> None:
    monkeypatch.setattr(params, "YAML", partial(YAML, pure=pure or None))
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"params.yaml is not a UTF-8 text \(.*: {place}\); save it as UTF-8"):
        params.read(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('a: {b: "half \\uD83D"}', "a.b"),
        ('a: [fine, "\\uDC00"]', r"a\[1\]"),
        ('a: {"\\uDCE9": 1}', "a key of a"),
    ],
)
def test_half_of_a_surrogate_pair_in_a_params_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, name: str
) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"p.yaml is not valid YAML: .*|p.yaml: .*give it in UTF-8"):
        params.read_mapping(tmp_path / "p.yaml", holding="sections", remedy="correct it")
    monkeypatch.setattr(params, "YAML", partial(YAML, pure=True))  # the pure Python parser accepts the escape
    with pytest.raises(ValueError, match=rf"p.yaml: {name} is .*UTF-8 cannot hold it; give it in UTF-8"):
        params.read_mapping(tmp_path / "p.yaml", holding="sections", remedy="correct it")


@pytest.mark.parametrize("change", ["profile=caf\udce9", "profile='\udc83r'", "caf\udce9=1"])
def test_a_change_that_utf8_cannot_hold_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(ValueError, match=r"a change is .*give it in UTF-8"):
        params.vary(params.PROFILES / "smoke.yaml", [change], tmp_path / "out.yaml")
    assert list(tmp_path.iterdir()) == []
