"""Stages that load a trained model use its training record, and stop if params have another value."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from causvid.compute.precision import Precision
from causvid.data.stores.prompt_store import INDEX
from causvid.diffusion.schedule import FlowSchedule
from causvid.record import FILE, TrainingRecord, read_record, write_record
from causvid.reporting import summary
from stages import (
    generate_ode_pairs,
    measure_latency,
    sample,
    train_causal_teacher,
    train_dmd,
    train_ode_init,
    train_teacher,
)
from tests.conftest import CAUSAL_TEACHER, SCHEDULE, STUDENT, TEACHER, VIDEO

MAINS = {
    it.__name__.rpartition(".")[2]: it.main
    for it in (
        generate_ode_pairs,
        measure_latency,
        sample,
        train_causal_teacher,
        train_dmd,
        train_ode_init,
        train_teacher,
    )
}


@pytest.fixture
def data(project: Path, world: Path, vae_config: dict[str, Any], transformer_config: dict[str, Any]) -> Path:
    """Return the data folder of a project with two trained teachers and two trained students."""
    folder = project / "data"
    for name, source in (
        ("vae", "vae"),
        ("teacher", "teacher"),
        ("causal_teacher", "causal_teacher"),
        ("ode_init", "student"),
        ("dmd", "student"),
    ):
        shutil.copytree(world / source, folder / "checkpoints" / name)
    for name in ("prompts", "lmdb"):
        shutil.copytree(world / name, folder / name)
    write_params(project, model__vae=vae_config, model__transformer=transformer_config, model__frames_per_block=2)
    for stage in ("train_teacher", "train_causal_teacher", "train_ode_init", "train_dmd"):
        write_params(project, **{f"{stage}__steps": 1, f"{stage}__batch_size": 2})
    write_params(
        project,
        encode_prompts__captions="data/captions.txt",
        generate_ode_pairs__pairs=1,
        measure_latency__repeats=1,
        sample__videos=1,
        sample__rollouts=0,
    )
    return folder


def write_params(project: Path, **changes: Any) -> None:
    """Change entries of params.yaml, for example ``video__fps=4``."""
    values = YAML(typ="safe").load(project / "params.yaml")
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = values
        for key in path:
            place = place[key]
        place[last] = value
    YAML(typ="safe").dump(values, project / "params.yaml")


def run(stage: str, data: Path) -> Result:
    """Run one stage. The stage sample samples the student in checkpoints/dmd."""
    models = data / "checkpoints"
    paths = {
        "train_teacher": {"latents": data / "lmdb/latents", "vae": models / "vae"},
        "train_causal_teacher": {
            "latents": data / "lmdb/latents", "teacher": models / "teacher", "vae": models / "vae",
        },
        "train_ode_init": {"pairs": data / "lmdb/pairs", "start": models / "causal_teacher", "vae": models / "vae"},
        "train_dmd": {
            "latents": data / "lmdb/latents", "teacher": models / "teacher", "student": models / "ode_init",
            "vae": models / "vae",
        },
        "generate_ode_pairs": {"vae": models / "vae", "teacher": models / "teacher"},
        "measure_latency": {"vae": models / "vae", "teacher": models / "teacher", "student": models / "dmd"},
        "sample": {"model": "dmd", "steps": "few", "checkpoint": models / "dmd", "vae": models / "vae"},
    }[stage]  # fmt: skip
    (data / "captions.txt").write_text("a red ball moves left\n")
    outs = {"speeds": data / "speeds.json"} if stage == "measure_latency" else {"out": data / "out"}
    curve = {"curve": data / "curve.csv"} if stage.startswith("train") else {}
    options = {**paths, "prompts": data / "prompts", **outs, **curve, "metrics": data / "metrics.json"}
    app = typer.Typer()
    app.command()(MAINS[stage])
    return CliRunner().invoke(app, [word for key, value in options.items() for word in (f"--{key}", str(value))])


@pytest.mark.parametrize("stage", MAINS)
def test_a_stage_runs_with_the_params_of_the_training(stage: str, data: Path) -> None:
    done = run(stage, data)
    assert done.exit_code == 0, done.output
    if stage.startswith("train"):
        expected = {"train_teacher": TEACHER, "train_causal_teacher": CAUSAL_TEACHER}
        assert read_record(data / "out") == expected.get(stage, STUDENT)


def test_the_file_of_speeds_has_the_headline_speeds(data: Path) -> None:
    done = run("measure_latency", data)
    assert done.exit_code == 0, done.output
    metrics = json.loads((data / "metrics.json").read_text())
    expected = summary.values({"measure_latency": metrics}, summary.SPEEDS)
    assert json.loads((data / "speeds.json").read_text()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("init", "steps", "model"),
    [(None, 0, "converted"), (None, 1, "causal"), ("teacher", 0, "converted"), ("causal_teacher", 0, "causal")],
)
def test_the_metrics_say_whether_a_causal_teacher_is_trained(
    data: Path, init: str | None, steps: int, model: str
) -> None:
    models = data / "checkpoints"
    (data / "none").mkdir()
    folder = data / "none" if init is None else models / init
    write_params(data.parent, train_causal_teacher__steps=steps, train_causal_teacher__init__folder=str(folder))
    done = run("train_causal_teacher", data)
    assert done.exit_code == 0, done.output
    found = json.loads((data / "metrics.json").read_text())
    assert (found["start"], found["model"]) == (str(models / (init or "teacher")), model)
    if init is None and not steps:
        write_params(data.parent, model__frames_per_block=None)
        shutil.rmtree(data / "out")
        assert run("train_causal_teacher", data).exit_code == 0
        assert json.loads((data / "metrics.json").read_text())["model"] == "bidirectional"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"schedule__denoising_timesteps": [1000, 900]},
            "schedule.denoising_timesteps [1000, 750, 500], not [1000, 900]",
        ),
        ({"schedule__shift": 5.0, "schedule__denoising_timesteps": [1000]}, "schedule.shift 3, not 5"),
        ({"schedule__context_timestep": 10}, "schedule.context_timestep 0, not 10"),
        ({"video": {**asdict(VIDEO), "width": 48}}, "video.width 32, not 48"),
        ({"video": {**asdict(VIDEO), "fps": 16}}, "video.fps 8, not 16"),
        ({"video": {**asdict(VIDEO), "frames": 29}}, "video.frames 13, not 29"),
        ({"model__precision": "bfloat16"}, "model.precision float32, not bfloat16"),
    ],
)
def test_a_sampled_student_is_refused_if_params_differ(data: Path, change: dict[str, Any], said: str) -> None:
    write_params(data.parent, **change)
    done = run("sample", data)
    assert done.exit_code == 1
    assert f"{data / 'checkpoints' / 'dmd'} was trained for {said}" in done.output
    assert "run 'dvc repro train_dmd', or put the value back" in done.output
    assert not (data / "out").exists()


@pytest.mark.parametrize(
    ("stage", "model", "record", "said"),
    [
        ("train_ode_init", "causal_teacher", replace(CAUSAL_TEACHER, text_tokens=512), "model.text_tokens 512, not 4"),
        ("train_ode_init", "causal_teacher", STUDENT, "trained for few steps"),
        ("train_causal_teacher", "teacher", STUDENT, "trained for few steps"),
        ("train_dmd", "teacher", STUDENT, "trained for few steps"),
        ("train_dmd", "teacher", replace(TEACHER, video=replace(VIDEO, fps=24)), "video.fps 24, not 8"),
        ("train_dmd", "ode_init", replace(STUDENT, schedule=replace(SCHEDULE, solver_steps=8)), "solver_steps 8, not 4"),
        ("train_dmd", "ode_init", TEACHER, "trained for many steps"),
        ("generate_ode_pairs", "teacher", replace(TEACHER, schedule=FlowSchedule(shift=8)), "schedule.shift 8, not 3"),
        ("generate_ode_pairs", "teacher", STUDENT, "trained for few steps"),
        ("measure_latency", "teacher", replace(TEACHER, video=replace(VIDEO, height=64)), "video.height 64, not 32"),
        ("measure_latency", "dmd", replace(STUDENT, precision=Precision.BFLOAT16), "precision bfloat16, not float32"),
        ("measure_latency", "dmd", TEACHER, "trained for many steps"),
        ("sample", "dmd", TEACHER, "trained for many steps"),
        ("sample", "dmd", replace(STUDENT, text_tokens=20), "model.text_tokens 20, not 4"),
    ],
)  # fmt: skip
def test_every_stage_refuses_a_model_of_another_training(
    data: Path, stage: str, model: str, record: TrainingRecord, said: str
) -> None:
    folder = data / "checkpoints" / model
    write_record(record, folder)
    done = run(stage, data)
    assert done.exit_code == 1
    assert f"{stage}: {folder} was trained for " in done.output
    assert said in done.output
    assert not (data / "out").exists()


@pytest.mark.parametrize(
    ("stage", "model"),
    [
        ("train_causal_teacher", "teacher"), ("train_ode_init", "causal_teacher"), ("train_dmd", "teacher"), ("train_dmd", "ode_init"), ("sample", "dmd"),
        ("generate_ode_pairs", "teacher"), ("measure_latency", "teacher"), ("measure_latency", "dmd"),
    ],
)  # fmt: skip
def test_a_model_without_a_record_is_refused(data: Path, stage: str, model: str) -> None:
    (data / "checkpoints" / model / FILE).unlink()
    done = run(stage, data)
    makers = {
        "teacher": "train_teacher",
        "causal_teacher": "train_causal_teacher",
        "ode_init": "train_ode_init",
        "dmd": "train_dmd",
    }
    assert done.exit_code == 1
    assert (
        f"{model} has no {FILE}, which says what its model was trained for: run 'dvc repro {makers[model]}'"
        in done.output
    )


@pytest.mark.parametrize("stage", ["sample", "measure_latency", "generate_ode_pairs", "train_ode_init", "train_dmd"])
def test_a_model_beside_another_vae_is_refused(data: Path, stage: str) -> None:
    """The folder data/checkpoints contains the VAE of another run, with weights of the same shapes."""
    path = data / "checkpoints" / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latents_mean": [0.25] * 4}))
    done = run(stage, data)
    assert done.exit_code == 1
    assert "was trained on latents of another VAE" in done.output


def test_prompts_of_another_length_are_refused(data: Path) -> None:
    path = data / "prompts" / INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokens": 9}))
    for stage in ("sample", "train_dmd", "generate_ode_pairs"):
        done = run(stage, data)
        assert done.exit_code == 1
        assert "model.text_tokens 4, not 9" in done.output


def test_a_causal_teacher_may_have_other_blocks(data: Path, world: Path) -> None:
    shutil.rmtree(data / "checkpoints" / "teacher")
    shutil.copytree(world / "causal_teacher", data / "checkpoints" / "teacher")
    for stage in ("train_dmd", "measure_latency"):
        done = run(stage, data)
        assert done.exit_code == 0, done.output


def test_a_teacher_can_be_sampled_with_any_solver_settings(data: Path) -> None:
    """The training record of a teacher contains no denoising timesteps, no solver steps and no context timestep."""
    write_params(data.parent, schedule={**asdict(SCHEDULE), "denoising_timesteps": [1000, 900], "context_timestep": 10})
    assert run("generate_ode_pairs", data).exit_code == 0


def test_a_stage_follows_links_to_models(data: Path) -> None:
    """At first each file is a link, as with a linked DVC cache. Then each folder is a link, too."""
    for number, file in enumerate(path for path in data.rglob("*") if path.is_file()):
        blob = data.parent / "cache" / f"{number:04d}"
        blob.parent.mkdir(exist_ok=True)
        file.rename(blob)
        file.symlink_to(blob)
    elsewhere = data.parent / "elsewhere"
    for folder in (*(data / "checkpoints").iterdir(), data / "prompts", data / "lmdb" / "latents"):
        moved = elsewhere / folder.name
        moved.parent.mkdir(exist_ok=True)
        folder.rename(moved)
        folder.symlink_to(moved)
    for stage in ("train_dmd", "sample", "measure_latency"):
        shutil.rmtree(data / "out", ignore_errors=True)
        done = run(stage, data)
        assert done.exit_code == 0, done.output
    (data / "checkpoints" / "dmd" / FILE).unlink()
    assert "checkpoints/dmd has no" in run("sample", data).output
