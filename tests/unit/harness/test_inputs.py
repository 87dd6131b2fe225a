"""Each path in params.yaml is listed, compared by its content, and refused by name if the path is invalid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid.harness import inputs
from causvid.harness.checksums import ABSENT
from causvid.harness.project import project_root, refuse_unusable, work_root
from causvid.params import PROFILES, ROOT, PathRule
from causvid.profile import PATHS

PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def values() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(PROFILES / "smoke.yaml")
    return found


def some(*names: str) -> dict[str, PathRule]:
    """Return the rules of the paths ``names``."""
    return {name: PATHS[name] for name in names}


def change(params: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    *parents, last = name.split(".")
    place = params
    for key in parents:
        place = place[key]
    place[last] = value
    return params


def test_the_list_of_paths_is_complete() -> None:
    """Every entry of a profile whose value looks like a path has the type Path."""
    assert {name for name, rule in PATHS.items() if rule.may_be_missing} >= {"download.folder", "download.captions"}
    assert [name for name, rule in PATHS.items() if rule.counted_by] == ["evaluate.vbench_python"]

    def slashed(section: Any, prefix: str) -> Iterator[str]:
        for key, value in section.items():
            if isinstance(value, dict):
                yield from slashed(value, f"{prefix}{key}.")
            elif isinstance(value, str) and "/" in value and not key.startswith("mixkit_"):
                yield f"{prefix}{key}"

    assert set(slashed(values(), "")) == set(PATHS)


@pytest.mark.parametrize("name", [name for name, rule in PATHS.items() if not rule.counted_by])
def test_every_stage_that_reads_a_path_depends_on_its_checksum(name: str) -> None:
    """The params of a stage in dvc.yaml name the sections that the stage reads."""
    for stage, stanza in PIPELINE.items():
        body = stanza.get("do", stanza)
        keys = [key for key in body.get("params", []) if isinstance(key, str)]
        reads = [path for path in PATHS if any(f"{path}.".startswith(f"{key}.") for key in keys)]
        deps = [dep.replace("${key}", item) for dep in body["deps"] for item in stanza.get("foreach", {"": ""})]
        assert (f"data/checksums/{name}" in deps) == (name in reads), f"{stage}: {name}"


def test_no_command_contains_a_path_of_the_user() -> None:
    for file in (ROOT / "dvc.yaml", ROOT / "ablation" / "dvc.yaml"):
        for name, stanza in YAML(typ="safe").load(file)["stages"].items():
            command = stanza.get("do", stanza)["cmd"]
            for section in values():
                assert f"${{{section}" not in command, name
        paths = {value for name in PATHS if not inputs.is_output(value := inputs.value_of(values(), name))}
        assert not [path for path in paths if path in file.read_text()]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "which is not a path"),
        ("a\0b", "which is not a path"),
        ("caf\udce9", "UTF-8 cannot hold it"),
        ("s3://bucket/videos", "a URL"),
        ("ds://videos", "a URL"),
        ("file:///data", "a URL"),
        ("~/videos", "'~' is not replaced"),
        ("~someone/videos", "'~' is not replaced"),
        (".", "holds the project itself"),
        ("data/..", "holds the project itself"),
        ("..", "holds the project itself"),
        ("/", "holds the project itself"),
        (".dvc/cache", "belongs to DVC itself"),
        ("weights.dvc", "belongs to DVC itself"),
        ("dvc.yaml", "a file of DVC's own"),
        ("ablation/dvc.lock", "a file of DVC's own"),
    ],
)
@pytest.mark.parametrize("name", ["download.folder", "train_vae.init.folder"])
def test_an_invalid_path_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = inputs.path_problems(change(values(), name, value), PATHS)
    assert problem.startswith(f"{name} is {value!r}, ")
    assert reason in problem


@pytest.mark.parametrize(
    "value",
    ["my videos", "bob's & co", "a;b", "$HOME", "${HOME}", "%41", "a?b", "a#1", "[x]", "{y}", "über", "u\u0308ber",
     "-lead", "a" * 200, 'quo"te', "back\\slash", "a\nb", "..hidden", "x/../y", "/elsewhere/~x", "a:b"],
)  # fmt: skip
def test_any_other_name_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.chdir(tmp_path)
    problems = list(inputs.path_problems(change(values(), "download.folder", value), PATHS))
    assert problems == []


def test_a_missing_path_is_absent_or_refused_by_name(tmp_path: Path) -> None:
    found = inputs.checksums(values(), some("download.captions", "evaluate.vbench_weights"), tmp_path)
    assert set(found.values()) == {ABSENT}
    with pytest.raises(ValueError, match=r"train_vae.init.folder is data/inputs/scratch, which does not exist"):
        inputs.checksums(values(), some("train_vae.init.folder"), tmp_path)


@pytest.mark.parametrize(
    "value", ["data/inputs/mine", "data/inputs/mine/", "./data/inputs/mine", "data//inputs/./mine"]
)
def test_every_spelling_of_a_path_counts_by_its_content(tmp_path: Path, value: str) -> None:
    (tmp_path / "data" / "inputs" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "inputs" / "mine" / "a.mp4").write_text("video")
    found = inputs.checksums(change(values(), "download.folder", value), some("download.folder"), tmp_path)
    assert list(found) == ["data/inputs/mine"]
    assert found["data/inputs/mine"] != ABSENT


def test_an_environment_counts_by_its_lock_file(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    lock = tmp_path / "requirements" / "vbench.txt"
    lock.write_text("vbench==1\n")
    before = inputs.checksums(values(), some("evaluate.vbench_python"), tmp_path)
    (tmp_path / ".venvs" / "vbench" / "bin").mkdir(parents=True)
    (tmp_path / ".venvs" / "vbench" / "bin" / "python").touch()
    assert inputs.checksums(values(), some("evaluate.vbench_python"), tmp_path) == before
    lock.write_text("vbench==2\n")
    assert inputs.checksums(values(), some("evaluate.vbench_python"), tmp_path) != before


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Return the folder of a DVC experiment below the project ``tmp_path``."""
    folder = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc123"
    folder.mkdir(parents=True)
    return folder


def test_an_experiment_belongs_to_its_project(
    tmp_path: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAUSVID_WORK_DIR", raising=False)
    for folder in (experiment, experiment / "ablation"):
        assert project_root(folder) == tmp_path
        assert work_root(folder) == tmp_path / ".work"
    assert project_root(tmp_path) == tmp_path
    for other in (tmp_path / ".dvc" / "tmp", tmp_path / "exps" / "a", tmp_path / ".dvc" / "tmp" / "exps"):
        assert project_root(other) == other


def test_an_experiment_reads_untracked_files_from_the_project(tmp_path: Path, experiment: Path) -> None:
    theirs = values()
    found = inputs.located(theirs, PATHS, experiment)
    for name, rule in PATHS.items():
        value = inputs.value_of(theirs, name)
        assert inputs.value_of(found, name) == (str(tmp_path / value) if rule.may_be_missing else value)
    assert theirs == values()
    assert inputs.located(theirs, PATHS, tmp_path) == theirs
    absolute = change(values(), "download.folder", "/elsewhere/videos")
    assert inputs.value_of(inputs.located(absolute, PATHS, experiment), "download.folder") == "/elsewhere/videos"


def test_checksums_are_the_same_in_an_experiment(tmp_path: Path, experiment: Path) -> None:
    (tmp_path / "data" / "inputs" / "videos").mkdir(parents=True)
    (tmp_path / "data" / "inputs" / "videos" / "a.mp4").write_text("video")
    names = some("download.folder", "download.captions")
    assert inputs.checksums(values(), names, experiment) == inputs.checksums(values(), names, tmp_path)


@pytest.mark.parametrize("name", ["{z}", "a{", "}b"])
def test_a_project_whose_path_dvc_cannot_handle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="and DVC fails on a path with braces: rename the folder"):
        refuse_unusable(tmp_path / name)


def test_data_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    refuse_unusable(tmp_path)
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"data is a link to .*elsewhere.*dvc cache dir"):
        refuse_unusable(tmp_path)
