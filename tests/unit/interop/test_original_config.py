"""Original CausVid configs become params files with a report; values without an equivalent raise errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid import params
from causvid.diffusion.schedule import ScheduleConfig
from causvid.interop import original_config
from causvid.interop.original_config import NO_PLACE, import_config
from causvid.interop.released_config import Released, ReleasedDmd
from causvid.methods.dmd.config import DmdConfig
from causvid.methods.ode_init.config import OdeConfig

Config = dict[str, Any]
CAUSAL_ODE: Config = {
    "model_name": "causal_wan",
    "generator_grad": {"model": True},
    "denoising_step_list": [1000, 757, 522, 0],
    "generator_task": "causal_video",
    "generator_fsdp_wrap_strategy": "size",
    "text_encoder_fsdp_wrap_strategy": "size",
    "mixed_precision": True,
    "seed": 0,
    "wandb_host": "WANDB_HOST",
    "wandb_key": "WANDB_KEY",
    "wandb_entity": "tyin",
    "wandb_project": "causvid",
    "wandb_name": "wan_causal_ode",
    "sharding_strategy": "hybrid_full",
    "lr": 2.0e-6,
    "beta1": 0.9,
    "beta2": 0.999,
    "data_path": "mixkit_ode_lmdb",
    "batch_size": 2,
    "log_iters": 200,
    "output_path": "localssd/wan_causal_ode",
    "distillation_loss": "ode",
    "gradient_checkpointing": True,
    "num_frame_per_block": 3,
    "warp_denoising_step": False,
}
SCRATCH: Config = CAUSAL_ODE | {
    "model_name": "wan",
    "denoising_step_list": [1000, 757, 522],
    "generator_task": "bidirectional_video",
    "real_task_type": "bidirectional_video",
    "fake_task_type": "bidirectional_video",
    "real_score_grad": {"model": False},
    "fake_score_grad": {"model": True},
    "real_score_fsdp_wrap_strategy": "size",
    "fake_score_fsdp_wrap_strategy": "size",
    "num_train_timestep": 1000,
    "timestep_shift": 8.0,
    "real_guidance_scale": 3.5,
    "denoising_loss_type": "flow",
    "backward_simulation": False,
    "data_path": "mixkit_latents_lmdb",
    "batch_size": 1,
    "negative_prompt": params.read(original_config.BASE)["encode_prompts"]["negative_prompt"],
    "dfake_gen_update_ratio": 5,
    "image_or_video_shape": [1, 21, 16, 60, 104],
    "distillation_loss": "dmd",
}
del SCRATCH["num_frame_per_block"]
BIDIRECTIONAL = {key: value for key, value in SCRATCH.items() if key != "backward_simulation"} | {
    "data_path": "sample_dataset/mixkit_prompts.txt"
}
CAUSAL_DMD = SCRATCH | {
    "generator_name": "causal_wan",
    "generator_ckpt": "wan_causal_ode_checkpoint_model_003000/model.pt",
    "denoising_step_list": [1000, 757, 522, 0],
    "generator_task": "causal_video",
    "num_frame_per_block": 3,
}
WARP = CAUSAL_DMD | {
    "denoising_step_list": [1000, 750, 500, 250, 0],
    "warp_denoising_step": True,
    "real_guidance_scale": 2.0,
}
# Values of each converted config that differ from profiles/wan-1.3b.yaml, by dotted key. The profile has the values of
# the causal configs.
RELEASED_LATENTS = {
    "pack_lmdb.latents.source": "released",
    "pack_lmdb.latents.folder": "mixkit_latents_lmdb",
    "encode_prompts.captions": "mixkit_latents_lmdb",
}
EXPECTED: dict[str, tuple[Config, Config]] = {
    "causal_ode": (
        CAUSAL_ODE,
        {
            "pack_lmdb.ode_pairs.source": "released",
            "pack_lmdb.ode_pairs.folder": "mixkit_ode_lmdb",
            "pack_lmdb.ode_pairs.timesteps": [1000, 757, 522, 0],
            "encode_prompts.captions": "mixkit_ode_lmdb",
        },
    ),
    "causal_dmd": (CAUSAL_DMD, RELEASED_LATENTS),
    "causal_dmd_warp_4step_cfg2": (
        WARP,
        RELEASED_LATENTS
        | {
            "schedule.denoising_timesteps": [1000, 960, 888.889, 727.273],
            "schedule.solver_steps": 52,
            "train_dmd.guidance_scale": 3.0,
        },
    ),
    "bidirectional_dmd": (
        BIDIRECTIONAL,
        {
            "model.frames_per_block": None,
            "encode_prompts.captions": "sample_dataset/mixkit_prompts.txt",
            "train_ode_init.steps": 0,
            "generate_ode_pairs.pairs": 1,
            "train_dmd.inputs": "rollout",
        },
    ),
    "bidirectional_dmd_from_scratch": (
        SCRATCH,
        RELEASED_LATENTS | {"model.frames_per_block": None, "train_ode_init.steps": 0, "generate_ode_pairs.pairs": 1},
    ),
}


def written(tmp_path: Path, config: Mapping[str, Any]) -> Path:
    source = tmp_path / "source.yaml"
    YAML().dump(dict(config), source)
    return source


def imported(tmp_path: Path, config: Mapping[str, Any], workers: int = 64) -> tuple[dict[str, Any], list[str]]:
    lines = import_config(written(tmp_path, config), tmp_path / "mine.yaml", workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "source.yaml"]
    return flat(params.read(tmp_path / "mine.yaml")), lines


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def line_of(key: str, lines: list[str]) -> str:
    (line,) = [line for line in lines if line.startswith((f"{key}: ", f"{key} (absent): "))]
    return line


@pytest.mark.parametrize("name", EXPECTED)
def test_an_original_causvid_config_is_converted(tmp_path: Path, name: str) -> None:
    config, expected = EXPECTED[name]
    values, lines = imported(tmp_path, config)
    base = flat(params.read(original_config.BASE))
    assert {key: values[key] for key in values if values[key] != base[key]} == {"profile": "mine"} | expected
    for key in config:
        line_of(key, lines)
    for path in expected:
        assert any(f" {path} {original_config._shown(base[path])} -> " in f" {line}" for line in lines), path
    result = tmp_path / "mine.yaml"
    params.section(result, "schedule", ScheduleConfig)
    params.section(result, "train_dmd", DmdConfig)
    params.section(result, "train_ode_init", OdeConfig)


def test_every_value_of_a_dmd_config_is_converted(tmp_path: Path) -> None:
    changed = CAUSAL_DMD | {
        "lr": 5.0e-6,
        "beta1": 0.0,
        "beta2": 0.99,
        "batch_size": 3,
        "log_iters": 50,
        "seed": 7,
        "mixed_precision": False,
        "gradient_checkpointing": False,
        "negative_prompt": 'dull: "grey", #1',
        "dfake_gen_update_ratio": 4,
        "image_or_video_shape": [3, 6, 16, 30, 52],
        "num_frame_per_block": 2,
        "data_path": "/data/own latents",
    }
    values, _ = imported(tmp_path, changed, workers=8)
    for optimizer in ("train_dmd.student_optimizer", "train_dmd.critic_optimizer"):
        assert values[f"{optimizer}.learning_rate"] == 5.0e-6
        assert values[f"{optimizer}.betas"] == [0.0, 0.99]
    assert values["train_ode_init.optimizer.betas"] == [0.9, 0.999]
    assert values["train_dmd.batch_size"] == 24
    assert values["compute.workers"] == 8
    assert values["train_dmd.checkpoint_every"] == 50
    assert values["seed"] == 7
    assert values["model.precision"] == "float32"
    assert values["compute.gradient_checkpointing"] == "none"
    assert values["encode_prompts.negative_prompt"] == 'dull: "grey", #1'
    assert values["train_dmd.critic_updates_per_student_update"] == 4
    assert (values["video.frames"], values["video.height"], values["video.width"]) == (21, 240, 416)
    assert values["model.frames_per_block"] == 2
    assert values["pack_lmdb.latents.folder"] == "/data/own latents"


def test_every_value_of_an_ode_config_is_converted(tmp_path: Path) -> None:
    changed = CAUSAL_ODE | {"lr": 5.0e-6, "beta1": 0.0, "beta2": 0.99, "log_iters": 50, "batch_size": 3}
    values, _ = imported(tmp_path, changed, workers=2)
    assert values["train_ode_init.optimizer.learning_rate"] == 5.0e-6
    assert values["train_ode_init.optimizer.betas"] == [0.0, 0.99]
    assert values["train_ode_init.checkpoint_every"] == 50
    assert values["train_ode_init.batch_size"] == 6
    assert values["train_dmd.batch_size"] == 64


def test_warped_ode_pairs_have_warped_timesteps(tmp_path: Path) -> None:
    warped = {"denoising_step_list": [1000, 750, 500, 250, 0], "warp_denoising_step": True, "data_path": "own_lmdb"}
    values, _ = imported(tmp_path, CAUSAL_ODE | warped)
    assert values["pack_lmdb.ode_pairs.timesteps"] == [1000, 960, 888.889, 727.273, 0]


def test_absent_keys_have_the_defaults_of_the_original_causvid_code(tmp_path: Path) -> None:
    absent = ("timestep_shift", "num_frame_per_block", "warp_denoising_step")
    values, lines = imported(tmp_path, {key: value for key, value in CAUSAL_DMD.items() if key not in absent})
    assert values["train_dmd.score_shift"] == 1.0
    assert values["schedule.shift"] == 8.0  # the original CausVid models contain this default
    assert values["model.frames_per_block"] == 1
    assert "timestep_shift (absent): train_dmd.score_shift 8.0 -> 1.0" in line_of("timestep_shift", lines)


def test_another_shift_gives_other_timesteps(tmp_path: Path) -> None:
    values, lines = imported(tmp_path, WARP | {"timestep_shift": 5.0})
    assert values["schedule.denoising_timesteps"] == [1000, 937.5, 833.333, 625]
    assert (values["schedule.shift"], values["train_dmd.score_shift"]) == (5.0, 5.0)
    assert "shifts only the score timesteps" in line_of("timestep_shift", lines)


def test_the_report_explains_differences(tmp_path: Path) -> None:
    _, lines = imported(tmp_path, WARP)
    assert "solver_steps 50 -> 52" in line_of("denoising_step_list", lines)
    assert "a solver with 50 steps has no state" in line_of("denoising_step_list", lines)
    assert "guidance_scale 4.5 -> 3.0" in line_of("real_guidance_scale", lines)
    assert "0 means a random seed" in line_of("seed", lines)
    checkpoint = line_of("generator_ckpt", lines)
    assert "original_checkpoint import wan_causal_ode_checkpoint_model_003000/model.pt STUDENT" in checkpoint
    assert "--num-attention-heads 12 --frames-per-block 3" in checkpoint
    for key in NO_PLACE:
        assert line_of(key, lines).startswith(f"{key}: not used: ")


@pytest.mark.parametrize(
    ("config", "explanation"),
    [
        (BIDIRECTIONAL | {"denoising_step_list": [1000, 757, 522, 0]}, "the bidirectional student here does not"),
        (CAUSAL_DMD | {"denoising_step_list": [1000, 757, 522]}, "receives no clean blocks; here it does"),
    ],
)
def test_the_report_explains_a_final_step_with_another_meaning(
    tmp_path: Path, config: Config, explanation: str
) -> None:
    values, lines = imported(tmp_path, config)
    assert values["schedule.denoising_timesteps"] == [1000, 757, 522]
    assert explanation in line_of("denoising_step_list", lines)


def test_dmd_keys_in_an_ode_config_are_reported_and_not_used(tmp_path: Path) -> None:
    values, lines = imported(tmp_path, CAUSAL_ODE | {"real_guidance_scale": 9.0})
    assert values["train_dmd.guidance_scale"] == 4.5
    assert "not used" in line_of("real_guidance_scale", lines)


def test_comments_and_notation_of_the_profile_are_kept(tmp_path: Path) -> None:
    imported(tmp_path, WARP)
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "# Converted from source.yaml by causvid.interop.original_config" in text
    assert "This is profiles/wan-1.3b.yaml" not in text
    assert "  solver_steps: 52 # Euler steps of the teacher\n" in text
    assert "  denoising_timesteps: # timesteps of the student" in text
    assert "\n  - 1000\n  - 960\n  - 888.889\n  - 727.273\n  context_timestep: " in text
    assert "    image_dim:\n" in text
    ours = original_config.BASE.read_text(encoding="utf-8")
    # one comment line replaces the two comment lines at the top of the profile
    assert text.count("#") == ours.count("#") - 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CAUSAL_DMD | {"model_name": "sdxl"}, r"model_name: Input should be 'wan' or 'causal_wan' \(found 'sdxl'\)"),
        (CAUSAL_DMD | {"generator_task": "image"}, r"generator_task: .*'causal_video' \(found 'image'\)"),
        (CAUSAL_DMD | {"denoising_loss_type": "noise"}, r"denoising_loss_type: .*'flow' \(found 'noise'\)"),
        (CAUSAL_DMD | {"distillation_loss": "gan"}, "distillation_loss is gan; it must be ode or dmd"),
        (CAUSAL_DMD | {"real_task_type": "causal_video"}, "real_task_type: "),
        (CAUSAL_DMD | {"num_train_timestep": 500}, "num_train_timestep: "),
        (CAUSAL_DMD | {"timestep_shift": 0.5}, "timestep_shift: "),
        (CAUSAL_DMD | {"generator_grad": {"model": False}}, "generator_grad.model: "),
        (CAUSAL_DMD | {"real_score_grad": {"model": True}}, "real_score_grad.model: "),
        (CAUSAL_DMD | {"fake_score_grad": {"model": False}}, "fake_score_grad.model: "),
        (CAUSAL_DMD | {"lr": "fast", "batch_size": 0}, "batch_size: .*lr: .*fast"),
        (CAUSAL_DMD | {"image_or_video_shape": [21, 16, 60, 104]}, "image_or_video_shape.4"),
        (CAUSAL_DMD | {"image_or_video_shape": [1, 21, 4, 60, 104]}, "image_or_video_shape is .* the 16 channels"),
        (CAUSAL_DMD | {"num_frame_per_block": 4}, "frames_per_block is 4; 21 latent frames divide"),
        (CAUSAL_DMD | {"backward_simulation": True}, "backward_simulation is true .* causal generator"),
        (CAUSAL_DMD | {"generator_name": "wan"}, "generator_task is causal_video, but the generator is wan"),
        (
            SCRATCH | {"generator_name": "causal_wan"},
            "generator_task is bidirectional_video, but the generator is causal_wan",
        ),
        (CAUSAL_DMD | {"model_name": "causal_wan"}, "model_name is causal_wan; the teacher and the critic"),
        (CAUSAL_ODE | {"generator_ckpt": "a.pt"}, "generator_ckpt is a.pt; the released ODE training has no such key"),
        (CAUSAL_DMD | {"data_path": "mixkit_ode_lmdb"}, "data_path is mixkit_ode_lmdb; .* needs an LMDB of latents"),
        (CAUSAL_DMD | {"data_path": "a.txt"}, "data_path is a.txt; .* false needs an LMDB of latents"),
        (BIDIRECTIONAL | {"data_path": "mixkit_latents_lmdb"}, "data_path is .* true needs a .txt of prompts"),
        (CAUSAL_ODE | {"data_path": "/x/mixkit_latents_lmdb"}, "data_path is .* ode needs an LMDB of ODE pairs"),
        (
            CAUSAL_ODE | {"denoising_step_list": [1000, 500, 0]},
            "denoising_step_list is .*; the timesteps in mixkit_ode",
        ),
        (CAUSAL_DMD | {"denoising_step_list": [999, 749, 0]}, "denoising_step_list is .* must start at 1000"),
        (CAUSAL_DMD | {"denoising_step_list": [1000, 500, 750]}, "denoising_step_list is .* decrease"),
        (CAUSAL_DMD | {"denoising_step_list": [1000, 0, 0]}, "denoising_step_list is .* decrease"),
        (CAUSAL_DMD | {"denoising_step_list": []}, "denoising_step_list is"),
        (CAUSAL_DMD | {"denoising_step_list": [1000, 3, 0]}, "denoising_timesteps has 3, which is not a state"),
    ],
)
def test_a_value_without_an_equivalent_raises_an_error_with_its_key(
    tmp_path: Path, config: Config, message: str
) -> None:
    source = written(tmp_path, config)
    with pytest.raises(ValueError, match=message):
        import_config(source, tmp_path / "mine.yaml", workers=64)
    assert list(tmp_path.iterdir()) == [source]


def test_one_error_lists_all_unknown_and_missing_keys(tmp_path: Path) -> None:
    config = {key: value for key, value in CAUSAL_DMD.items() if key not in ("lr", "real_guidance_scale")}
    with pytest.raises(
        ValueError, match="unknown key ema_weight; unknown key trainer; missing key lr; missing"
    ) as error:
        import_config(written(tmp_path, config | {"trainer": "x", "ema_weight": 0.9}), tmp_path / "m.yaml", workers=1)
    assert "missing key real_guidance_scale" in str(error.value)
    assert CAUSAL_DMD["negative_prompt"] not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("[1]", "holds list, not keys"), ("a: [", "is not valid YAML")])
def test_a_file_that_is_not_a_config_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    source = tmp_path / "source.yaml"
    source.write_text(text)
    with pytest.raises(ValueError, match=message):
        import_config(source, tmp_path / "mine.yaml", workers=1)
    with pytest.raises(ValueError, match="does not exist"):
        import_config(tmp_path / "none.yaml", tmp_path / "mine.yaml", workers=1)


def test_zero_workers_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers"):
        import_config(written(tmp_path, CAUSAL_DMD), tmp_path / "mine.yaml", workers=0)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="mine.yaml exists"):
        import_config(written(tmp_path, CAUSAL_DMD), target, workers=1)
    assert target.read_text() == "mine"


def test_a_profile_that_lacks_a_key_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(
        original_config.BASE.read_text(encoding="utf-8").replace("  inputs: data", "  other: data"), "utf-8"
    )
    monkeypatch.setattr(original_config, "BASE", base)
    with pytest.raises(ValueError, match="base.yaml has no key train_dmd.inputs"):
        import_config(written(tmp_path, CAUSAL_DMD), tmp_path / "mine.yaml", workers=1)
    assert not (tmp_path / "mine.yaml").exists()


def test_the_error_for_the_sdxl_config_lists_every_key_that_differs(tmp_path: Path) -> None:
    sdxl = SCRATCH | {"model_name": "sdxl", "generator_task": "image", "denoising_loss_type": "noise"}
    with pytest.raises(ValueError, match="model_name") as error:
        import_config(written(tmp_path, sdxl), tmp_path / "mine.yaml", workers=1)
    assert "generator_task" in str(error.value)
    assert "denoising_loss_type" in str(error.value)


def test_no_key_has_two_conversions() -> None:
    assert not NO_PLACE.keys() & ReleasedDmd.__dataclass_fields__.keys()
    assert Released.__dataclass_fields__.keys() < ReleasedDmd.__dataclass_fields__.keys()


def test_the_command_converts_a_config(tmp_path: Path) -> None:
    written(tmp_path, WARP | {"wandb_key": "secret"})
    command = [sys.executable, "-m", "causvid.interop.original_config", "import", "source.yaml", "mine.yaml"]
    env = {"PYTHONPATH": str(params.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(WARP) + 1
    assert "secret" not in done.stdout
    assert done.stdout.endswith("mine.yaml: other values are those of profiles/wan-1.3b.yaml\n")
    failed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == "mine.yaml exists; choose another name or remove it\n"
