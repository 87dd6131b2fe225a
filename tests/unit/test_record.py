"""Training records are reproducible, damaged records are refused, and record values are compared with a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from causvid.compute.precision import Precision
from causvid.diffusion.schedule import FlowSchedule
from causvid.record import (
    FILE,
    CacheRule,
    Normalisation,
    StudentRecord,
    TeacherRecord,
    TrainingRecord,
    read_record,
    read_student,
    write_record,
)
from causvid.runtime.shapes import VideoShape
from tests.conftest import CAUSAL_TEACHER, SCHEDULE, STUDENT, TEACHER

BIDIRECTIONAL = replace(STUDENT, frames_per_block=None, cache=None)
LATENTS = Normalisation(mean=(0.1, -0.2), std=(1.5, 2.0))


@pytest.mark.parametrize("record", [TEACHER, CAUSAL_TEACHER, STUDENT, BIDIRECTIONAL, replace(STUDENT, latents=None)])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, record: TrainingRecord) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_record(record, tmp_path / name)
    assert read_record(tmp_path / "a") == record
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    text = (tmp_path / "a" / FILE).read_text()
    assert str(tmp_path) not in text
    assert json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n" == text


def test_a_record_contains_all_values_that_determine_sampling(tmp_path: Path) -> None:
    write_record(STUDENT, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {
        "steps": "few",
        "schedule": {
            "shift": 3.0, "solver_steps": 4, "denoising_timesteps": [1000, 750, 500], "context_timestep": 0.0,
        },
        "video": {"height": 32, "width": 32, "frames": 13, "fps": 8},
        "text_tokens": 4,
        "frames_per_block": 2,
        "precision": "float32",
        "latents": {"rule": "standardise", "mean": [0.0] * 4, "std": [1.0] * 4},
        "cache": {"rule": "clean_pass", "window_frames": None, "sink_frames": 0},
    }  # fmt: skip
    write_record(TEACHER, tmp_path)
    found = json.loads((tmp_path / FILE).read_text())
    assert (found["steps"], found["schedule"], found["frames_per_block"]) == ("many", {"shift": 3.0}, None)
    assert "cache" not in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": "some"}, "'some'"),
        ({"steps": "many"}, "cache"),
        ({"cache": {"rule": "noisy_pass", "window_frames": None, "sink_frames": 0}}, "noisy_pass"),
        ({"cache": None}, "a causal student has both"),
        ({"latents": {"rule": "none", "mean": [], "std": []}}, "latents.rule"),
        ({"text_tokens": 0}, "text_tokens"),
        ({"frames_per_block": -3}, "frames_per_block"),
        ({"precision": "float8"}, "float8"),
        ({"video": {"height": 32, "width": 32, "frames": 13}}, "fps"),
        ({"schedule": {"shift": 3.0}}, "denoising_timesteps"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_record_of_another_version_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_record(STUDENT, tmp_path)
    path = tmp_path / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match="is damaged or of another version") as caught:
        read_record(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"few"', "{}", '{"steps": "few"}', '{"steps": ["few"]}'])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{FILE} is damaged or of another version .*: train it again"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        ("checkpoints/dmd", "run 'dvc repro train_dmd'"),
        ("checkpoints/ode_init", "run 'dvc repro train_ode_init'"),
        ("checkpoints/teacher", "run 'dvc repro train_teacher'"),
        ("ablate/few_step_bidirectional/0/student", "train it again"),
        ("ablate/many_step_causal/0/teacher", "train it again"),
    ],
)
def test_a_folder_without_a_record_is_refused_with_the_stage_to_run(tmp_path: Path, folder: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"{folder} has no {FILE}.*: {remedy}$"):
        read_record(tmp_path / folder)


def test_a_model_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    write_record(TEACHER, tmp_path)
    assert read_record(tmp_path, steps="many") == TEACHER
    with pytest.raises(ValueError, match=r"was trained for many steps .*, not for few"):
        read_student(tmp_path)
    write_record(BIDIRECTIONAL, tmp_path)
    assert read_student(tmp_path) == BIDIRECTIONAL
    with pytest.raises(ValueError, match=r"was trained for few steps .*, not for many"):
        read_record(tmp_path, steps="many")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(STUDENT, schedule=replace(SCHEDULE, context_timestep=10.0)), "schedule.context_timestep 0, not 10"),
        (replace(STUDENT, schedule=replace(SCHEDULE, denoising_timesteps=(1000, 900))), "[1000, 750, 500], not [1000, 900]"),
        (replace(STUDENT, video=VideoShape(height=32, width=64, frames=13, fps=8)), "video.width 32, not 64"),
        (replace(STUDENT, text_tokens=512), "model.text_tokens 4, not 512"),
        (replace(STUDENT, precision=Precision.BFLOAT16), "model.precision float32, not bfloat16"),
        (BIDIRECTIONAL, "model.frames_per_block 2, not null"),
    ],
)  # fmt: skip
def test_a_run_with_another_value_is_refused(tmp_path: Path, other: StudentRecord, said: str) -> None:
    with pytest.raises(
        ValueError, match=r"was trained for .* as in this run: train it again, or put the value back"
    ) as e:
        STUDENT.require(tmp_path, other.values())
    assert said in str(e.value)
    STUDENT.require(tmp_path, STUDENT.values())


def test_a_teacher_accepts_any_solver_steps(tmp_path: Path) -> None:
    """The few steps, the solver steps and the context timestep do not belong to the training of a teacher."""
    TEACHER.require(tmp_path, {k: v for k, v in STUDENT.values().items() if k != "model.frames_per_block"})
    with pytest.raises(ValueError, match=r"schedule.shift 3, not 8"):
        TEACHER.require(tmp_path, replace(TEACHER, schedule=FlowSchedule(shift=8.0)).values())


@pytest.mark.parametrize(
    ("other", "close"),
    [
        (Normalisation(mean=(0.1, -0.2), std=(1.5, 2.0)), True),
        (Normalisation(mean=(0.1004, -0.2), std=(1.5, 2.001)), True),  # the values are equal in float16
        (Normalisation(mean=(0.2, -0.1), std=(1.5, 2.0)), False),
        (Normalisation(mean=(0.1, -0.2), std=(1.5, 2.02)), False),
        (Normalisation(mean=(0.1,), std=(1.5,)), False),
        (Normalisation(mean=(0.1, -0.2, 0.0), std=(1.5, 2.0, 1.0)), False),
    ],
)
def test_a_vae_with_other_statistics_is_refused(tmp_path: Path, other: Normalisation, close: bool) -> None:
    assert LATENTS.is_close(other) is close
    assert other.is_close(LATENTS) is close
    (tmp_path / "config.json").write_text(json.dumps({"latents_mean": other.mean, "latents_std": other.std}))
    record, folder = replace(STUDENT, latents=LATENTS), tmp_path / "checkpoints" / "dmd"
    assert record.fits(tmp_path) is close
    if not close:
        with pytest.raises(
            ValueError, match=r"on latents of another VAE than .*latents_std differ.*dvc repro train_dmd"
        ):
            record.require_vae(folder, tmp_path)


def test_an_unknown_normalisation_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = replace(STUDENT, latents=None)
    (tmp_path / "config.json").write_text(json.dumps({"latents_mean": [0.0], "latents_std": [1.0]}))
    record.require_vae(Path("dmd"), tmp_path)
    assert (
        f"which came from a released LMDB; {tmp_path} is assumed to be the VAE of these latents"
        in capsys.readouterr().err
    )
    for text in ("{", "3"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="holds no VAE"):
            STUDENT.require_vae(Path("dmd"), tmp_path)


def test_only_a_causal_student_has_a_cache_rule() -> None:
    for changes in ({"cache": None}, {"frames_per_block": None}):
        with pytest.raises(ValueError, match="a causal student has both values, a bidirectional student has neither"):
            replace(STUDENT, **changes)
    assert STUDENT.cache == CacheRule(rule="clean_pass", window_frames=None, sink_frames=0)
    assert isinstance(TEACHER, TeacherRecord)
