"""Every training writes a training record, and starts only from models whose record fits its own record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from causvid.compute.precision import Precision
from causvid.data.stores.config import Source
from causvid.data.stores.latent_store import LatentStore
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.methods.shared.recording import Clips, check_origin, clips_of, require_same_training, student_record
from causvid.record import FEW, FILE, MANY, Normalisation, TrainingRecord, read_record, write_record
from causvid.runtime.shapes import VideoShape
from causvid.wan.transformer.wan import build_transformer
from tests.conftest import CAUSAL_TEACHER, SCHEDULE, STUDENT, TEACHER, VIDEO
from tests.unit.training.conftest import with_inputs

OTHER_LATENTS = Normalisation(mean=(0.5,) * 4, std=(2.0,) * 4)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("teacher", TEACHER), ("causal_teacher", CAUSAL_TEACHER), ("ode", STUDENT), ("dmd", STUDENT)],
)
def test_every_export_has_the_record_of_its_training(
    kinds: dict[str, Any], tmp_path: Path, name: str, expected: TrainingRecord, steps: int
) -> None:
    runs = [kinds[name].new_run(tmp_path / place, steps=steps) for place in ("one", "two")]
    for run in runs:
        run.work.mkdir()
        kinds[name].train(run)
    assert read_record(runs[0].work / "export") == expected
    one, two = ((run.work / "export" / FILE).read_bytes() for run in runs)
    assert one == two


def test_the_record_is_that_of_the_run(
    kinds: dict[str, Any], schedule: ScheduleConfig, world: Path, tmp_path: Path
) -> None:
    clips = Clips(video=replace(VIDEO, fps=16), latents=None)
    record = student_record(clips, schedule, world / "prompts", Precision.BFLOAT16, None)
    run = with_inputs(kinds["dmd"].new_run(tmp_path, steps=0, precision=Precision.BFLOAT16), student=world / "teacher")
    kinds["dmd"].train(replace(run, record=record))
    expected = replace(
        STUDENT, video=clips.video, precision=Precision.BFLOAT16, latents=None, frames_per_block=None, cache=None
    )
    assert read_record(tmp_path / "export") == expected, "the record must describe the run"


def test_a_student_with_other_blocks_than_its_record_is_rejected(
    kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    run = with_inputs(kinds["dmd"].new_run(tmp_path), student=world / "teacher")
    with pytest.raises(ValueError, match="has blocks of None latent frames, and its training record says 2"):
        kinds["dmd"].step(run)


# --- clips ------------------------------------------------------------------------------------------------------------


def described(lmdb: Path, config: dict[str, Any], vae: Path, *, source: Source = Source.OURS, **video: int) -> Clips:
    """Return the description of the clips in an LMDB for params.yaml with the values ``video`` in its video section."""
    shape = VideoShape(**{"height": 32, "width": 32, "frames": 13, "fps": 8} | video)
    return clips_of(lmdb, shape, source, vae=vae, config=config)


@pytest.mark.parametrize("lmdb", ["latents", "pairs"])
def test_clips_have_the_size_of_the_lmdb_and_the_statistics_of_its_vae(
    world: Path, tmp_path: Path, vae_config: dict[str, Any], lmdb: str
) -> None:
    """An LMDB of the original CausVid code names no VAE. The VAE in data/checkpoints may belong to another run."""
    statistics = {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}
    folder = world / "lmdb" / lmdb
    ours = described(folder, {**vae_config, **statistics}, world / "vae")
    assert ours == Clips(video=VIDEO, latents=STUDENT.latents)
    for vae in (world / "vae", tmp_path / "none"):
        given = described(folder, {**vae_config, **statistics}, vae, source=Source.RELEASED)
        assert given == Clips(video=VIDEO, latents=OTHER_LATENTS)
        unknown = described(folder, vae_config, vae, source=Source.RELEASED)
        assert unknown == Clips(video=VIDEO, latents=None)
    with pytest.raises(ValueError, match="none holds no VAE"):
        described(folder, vae_config, tmp_path / "none")


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"frames": 17}, "video.frames is 17; .* has 13"),
        ({"height": 64}, "video.height is 64; .* has 32"),
        ({"width": 16}, "video.width is 16; .* has 32"),
        ({"frames": 14}, "video.frames is 14; the VAE needs 4n"),
    ],
)
def test_latents_of_another_size_are_rejected(
    world: Path, vae_config: dict[str, Any], video: dict[str, int], said: str
) -> None:
    for source in Source:
        with pytest.raises(ValueError, match=said):
            described(world / "lmdb" / "pairs", vae_config, world / "vae", source=source, **video)


def test_latents_with_other_channels_are_rejected(world: Path, vae_config: dict[str, Any]) -> None:
    assert LatentStore(world / "lmdb" / "latents").metadata["shape"][1] == 4
    wrong = {**vae_config, "z_dim": 16}
    with pytest.raises(ValueError, match="model.vae.z_dim is 16; .* has 4"):
        described(world / "lmdb" / "latents", wrong, world / "vae", source=Source.RELEASED)


# --- initial models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (replace(TEACHER, text_tokens=512), "model.text_tokens 512, not 4"),
        (replace(TEACHER, video=replace(VIDEO, height=64)), "video.height 64, not 32"),
        (replace(TEACHER, video=replace(VIDEO, fps=24)), "video.fps 24, not 8"),
        (replace(TEACHER, schedule=FlowSchedule(shift=8.0)), "schedule.shift 8, not 3"),
        (replace(TEACHER, precision=Precision.BFLOAT16), "model.precision bfloat16, not float32"),
        (replace(TEACHER, latents=OTHER_LATENTS), "latents of another VAE"),
        (replace(STUDENT, schedule=replace(SCHEDULE, solver_steps=8)), "schedule.solver_steps 8, not 4"),
        (replace(STUDENT, schedule=replace(SCHEDULE, context_timestep=5)), "schedule.context_timestep 5, not 0"),
    ],
)
def test_a_teacher_or_initial_model_that_does_not_fit_is_rejected(
    tmp_path: Path, theirs: TrainingRecord, said: str
) -> None:
    write_record(theirs, tmp_path)
    with pytest.raises(ValueError, match=f"was trained .*{said}"):
        require_same_training(tmp_path, STUDENT, steps=theirs.STEPS)


@pytest.mark.parametrize("theirs", [TEACHER, CAUSAL_TEACHER, STUDENT, replace(TEACHER, latents=None)])
def test_a_teacher_may_have_other_blocks_and_no_few_steps(tmp_path: Path, theirs: TrainingRecord) -> None:
    write_record(theirs, tmp_path)
    for record in (STUDENT, replace(STUDENT, frames_per_block=None, cache=None)):
        require_same_training(tmp_path, record, steps=theirs.STEPS)
    other = FEW if theirs.STEPS == MANY else MANY
    with pytest.raises(ValueError, match=f"was trained for {theirs.STEPS} steps .*, not for {other}"):
        require_same_training(tmp_path, STUDENT, steps=other)


def test_initial_weights_without_a_record_are_accepted_with_a_message(
    tmp_path: Path, transformer_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    build_transformer(transformer_config, seed=0).save_pretrained(tmp_path)
    check_origin(tmp_path, TEACHER, stage="train_teacher", steps=0)
    said = capsys.readouterr().err
    assert (
        f"train_teacher.init is {tmp_path}, which has no {FILE}; its weights are assumed to be trained for the values in params.yaml: "
        in said
    )
    for value in (
        "schedule.shift 3",
        "video.width 32",
        "video.fps 8",
        "model.text_tokens 4",
        "model.precision float32",
    ):
        assert value in said
    check_origin(None, TEACHER, stage="train_teacher", steps=0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (replace(TEACHER, video=replace(VIDEO, height=16, width=16)), "video.height 16, not 32; video.width 16, not 32"),
        (replace(TEACHER, text_tokens=6), "model.text_tokens 6, not 4"),
        (replace(CAUSAL_TEACHER, schedule=FlowSchedule(shift=1.0)), "schedule.shift 1, not 3; model.frames_per_block 2, not null"),
        (TEACHER, ""),
    ],
)  # fmt: skip
def test_training_at_another_size_is_accepted_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], theirs: TrainingRecord, said: str
) -> None:
    write_record(theirs, tmp_path)
    check_origin(tmp_path, TEACHER, stage="train_teacher", steps=5)
    found = capsys.readouterr().err
    assert found == (f"train_teacher.init is {tmp_path}, which was trained for {said}\n" if said else "")


def test_a_few_step_model_becomes_a_teacher_only_by_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(STUDENT, tmp_path)
    with pytest.raises(
        ValueError,
        match=r"train_causal_teacher.init is .*, which was trained for few steps, and train_causal_teacher.steps is 0; .*"
        r"choose another train_causal_teacher.init, or set train_causal_teacher.steps above 0",
    ):
        check_origin(tmp_path, CAUSAL_TEACHER, stage="train_causal_teacher", steps=0)
    check_origin(tmp_path, CAUSAL_TEACHER, stage="train_causal_teacher", steps=1)
    write_record(CAUSAL_TEACHER, tmp_path)
    check_origin(tmp_path, STUDENT, stage="train_ode_init", steps=0)  # DMD without ODE initialisation starts here
    assert capsys.readouterr().err == ""


def test_weights_for_another_vae_must_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(replace(TEACHER, latents=OTHER_LATENTS), tmp_path)
    with pytest.raises(
        ValueError, match=r"trained for latents of another VAE .* train_ode_init.steps is 0: set these values as"
    ):
        check_origin(tmp_path, STUDENT, stage="train_ode_init", steps=0)
    check_origin(tmp_path, STUDENT, stage="train_ode_init", steps=1)
    assert "latents of another VAE (latents_mean and latents_std differ)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (replace(STUDENT, video=replace(VIDEO, fps=16)), "video.fps 16, not 8"),
        (replace(STUDENT, text_tokens=6), "model.text_tokens 6, not 4"),
        (replace(STUDENT, schedule=replace(SCHEDULE, context_timestep=10)), "schedule.context_timestep 10, not 0"),
        (replace(TEACHER, schedule=FlowSchedule(shift=1.0)), "schedule.shift 1, not 3"),
    ],
)
def test_with_zero_steps_weights_of_another_training_are_rejected(
    tmp_path: Path, theirs: TrainingRecord, said: str
) -> None:
    write_record(theirs, tmp_path)
    with pytest.raises(ValueError, match=rf"which was trained for {said}, and train_ode_init.steps is 0"):
        check_origin(tmp_path, STUDENT, stage="train_ode_init", steps=0)
    write_record(TEACHER, tmp_path)  # a bidirectional teacher may become a student with blocks
    check_origin(tmp_path, STUDENT, stage="train_ode_init", steps=0)
