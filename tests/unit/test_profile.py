"""A params file is checked against the dataclasses of all sections, and one error names every wrong key and value."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import pytest
from dvc.utils.hydra import apply_overrides

from causvid import params
from causvid.consistency import checked, read_profile
from causvid.harness.declaration import Section, declared
from causvid.profile import Profile
from tests.architecture.dependencies import STAGES, stage_class
from tests.unit.test_params import file_with

PROFILES = sorted(params.PROFILES.glob("*.yaml"))
FILES = [*PROFILES, params.ROOT / "params.yaml", params.ROOT / "ablation" / "params.yaml"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_can_be_read(path: Path) -> None:
    profile = read_profile(path)
    assert profile.profile == path.stem
    assert profile.train_dmd.turns.ratio == profile.train_dmd.critic_updates_per_student_update


def set_by_dvc(tmp_path: Path, path: Path, overrides: list[str]) -> list[list[str]]:
    """Return the lines of a params file before and after ``dvc exp run -S`` with ``overrides`` has changed the file."""
    copy = tmp_path / "params.yaml"
    shutil.copy(path, copy)
    apply_overrides(copy, overrides)
    return [file.read_bytes().decode().splitlines(keepends=True) for file in (path, copy)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(params.ROOT).as_posix())
def test_dvc_writes_a_params_file_without_a_change(tmp_path: Path, path: Path) -> None:
    before, after = set_by_dvc(tmp_path, path, [])
    assert after == before


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_dvc_changes_only_the_lines_of_the_params_that_it_sets(tmp_path: Path, path: Path) -> None:
    overrides = {"train_dmd.student_optimizer.learning_rate": "0.25", "download.limit": "17", "sample.crf": "3"}
    before, after = set_by_dvc(tmp_path, path, [f"{key}={value}" for key, value in overrides.items()])
    assert len(after) == len(before)
    changed = [new.split("#")[0].strip() for old, new in zip(before, after, strict=True) if new != old]
    assert changed == ["limit: 17", "learning_rate: 0.25", "crf: 3"]
    assert [old.count("#") for old in before] == [new.count("#") for new in after]


def test_dvc_changes_only_the_items_of_a_list_that_it_sets(tmp_path: Path) -> None:
    override = "schedule.denoising_timesteps=[1000,500]"
    before, after = set_by_dvc(tmp_path, params.PROFILES / "laptop.yaml", [override])
    where = before.index("  - 900\n")
    assert after == [*before[:where], *before[where + 2 :]]


def test_every_missing_and_unknown_key_is_named_at_once(tmp_path: Path) -> None:
    path = file_with(
        tmp_path, ("  fps: 8", "  fpz: 8"), ("\n  rollouts: ", "\n  rolouts: "), ("\nseed: 0", ""),
        ("    revision:\n", "    revision:\n    branch: main\n"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="params.yaml: ") as error:
        read_profile(path)
    for wrong in (
        "video.fps: this key is missing",
        "video.fpz: unknown key (found 8), did you mean video.fps? (line ",
        "sample.rollouts: this key is missing",
        "sample.rolouts: unknown key (found 2), did you mean sample.rollouts? (line ",
        "seed: this key is missing",
        "init.branch: unknown key (found 'main') (line ",
    ):
        assert wrong in str(error.value)


def test_a_wrong_field_is_named_with_its_line(tmp_path: Path) -> None:
    path = file_with(tmp_path, ("  fps: 8", "  fpz: 8"), ("\nseed: 0", ""))
    lines = [line.partition(" #")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    with pytest.raises(ValueError, match="params.yaml: ") as error:
        read_profile(path)
    of_key, of_section = lines.index("  fpz: 8") + 1, lines.index("video:") + 1
    assert f"video.fpz: unknown key (found 8), did you mean video.fps? (line {of_key})" in str(error.value)
    assert f"video.fps: this key is missing (line {of_section})" in str(error.value)
    assert "seed: this key is missing;" in str(error.value)


def test_sections_of_other_libraries_are_free(tmp_path: Path) -> None:
    profile = read_profile(file_with(tmp_path, ("    base_dim: 8", "    base_dim: 8\n    attn_scales: []")))
    assert profile.model.vae["attn_scales"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  - 20\n  - 980\n", "  - 980\n  - 20\n"), r"train_dmd: train_dmd.score_timesteps is \[980, 20\]"),
        (("  fps: 8", "  fps: eight"), "video.fps: .* integer.* \\(found 'eight'\\)"),
        (("  precision: float32", "  precision: float64"), "model.precision: .*'float32' or 'bfloat16'.*'float64'"),
        (("  videos: ", "  videos: -"), "sample.videos: .*greater than 0"),
        (("aspect: crop", "aspect: stretch"), "resample.aspect: .*'crop' or 'squeeze'.*'stretch'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"params.yaml: .*{message}"):
        read_profile(file_with(tmp_path, change))


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("z_dim", "vae"), ("scale_factor_spatial", "vae"), ("in_channels", "transformer"), ("text_dim", "transformer"),
        ("patch_size", "transformer"), ("num_layers", "transformer"), ("d_model", "text_encoder"), ("num_heads", "text_encoder"),
    ],
)  # fmt: skip
def test_a_missing_key_of_a_model_is_named(key: str, section: str) -> None:
    values = params.read(params.PROFILES / "smoke.yaml")
    del values["model"][section][key]
    with pytest.raises(
        ValueError, match=rf"model.{section} lacks the key {key}; add the key, as in profiles/laptop.yaml"
    ):
        checked(values)


def test_equal_score_timesteps_are_accepted(tmp_path: Path) -> None:
    """A range with equal ends gives the same timestep for all scores."""
    path = file_with(tmp_path, ("  - 20\n  - 980\n", "  - 500\n  - 500\n"))
    assert read_profile(path).train_dmd.score_timesteps == (500, 500)


def type_of(dotted: str) -> Any:
    """Return the type of an entry of a params file; None for an entry of a section without a dataclass."""
    kind: Any = Profile
    for key in dotted.split("."):
        if kind == dict[str, Any]:
            return None
        kind = get_type_hints(kind)[key]
    return kind


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage_class(stage)])
def test_a_stage_reads_params_with_the_types_of_the_profile(stage: str) -> None:
    cls = stage_class(stage)
    assert cls is not None
    for _, kind, section in declared(cls, Section):
        expected = type_of(section.name)
        if get_origin(expected) is Literal and kind is str:
            continue  # the profile checks this name, and the stage compares it with the possible names
        assert expected in (kind, None), section.name


def test_marks_on_a_type_are_kept() -> None:
    """The path rule "may be missing" is kept inside dataclasses and optional fields."""
    rule = params.PathRule(may_be_missing=True)
    assert dict(params.paths_in(Annotated[Path, rule], "a.b")) == {"a.b": rule}
    assert dict(params.paths_in(Path, "a")) == {"a": params.PathRule()}
    assert dict(params.paths_in(int, "a")) == {}
