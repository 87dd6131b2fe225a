"""Convert a config of the original ("released") CausVid code to a params file, and report the conversion of each key.

Format: a flat YAML file with the options of one training (``distillation_loss``: dmd or ode). The sections of all other
stages have the values of profiles/wan-1.3b.yaml. Three options have different definitions in the two codes:

- Guidance is cond + s (cond - uncond) in the original code, and uncond + w (cond - uncond) in this code: w = s + 1.
- The batch size is the number of samples per GPU in the original code, and of samples over all workers in this code.
- With ``warp_denoising_step``, the student's steps are positions on an unshifted grid of 1000; here they are timesteps.

``python -m causvid.interop.original_config import SRC.yaml DST.yaml [--workers 64]``
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from ruamel.yaml import YAML

from causvid.compute.parallel import Compute
from causvid.diffusion.schedule import TRAIN_TIMESTEPS, FlowSchedule, ScheduleConfig
from causvid.interop.released_config import TRAININGS, Released, ReleasedDmd
from causvid.params import PROFILES, build, read, read_mapping
from causvid.runtime.files import publish, write_text
from causvid.runtime.shapes import BlockLayout, VideoShape
from causvid.wan.formats.configs import latent_shape

BASE = PROFILES / "wan-1.3b.yaml"
# An LMDB of the original code does not store the timesteps of its states. The timesteps of this LMDB were published.
MIXKIT_ODE, MIXKIT_ODE_TIMES = "mixkit_ode_lmdb", [1000, 757, 522, 0]
MIXKIT_LATENTS = "mixkit_latents_lmdb"

_SHARDED = "not used: compute.shard_weights decides whether transformers are sharded, always block by block"
_TRACKED = "not used: MLflow stores curves and samples, at MLFLOW_TRACKING_URI"
NO_PLACE = {
    **dict.fromkeys(("wandb_host", "wandb_key", "wandb_entity", "wandb_project", "wandb_name"), _TRACKED),
    **{f"{name}_fsdp_wrap_strategy": _SHARDED for name in ("generator", "real_score", "fake_score", "text_encoder")},
    "sharding_strategy": _SHARDED,
    "output_path": "not used: results are in data/ and reports/, as defined in dvc.yaml",
}


@dataclass(frozen=True, kw_only=True)
class Fate:
    """Conversion of a key in the original config.

    Attributes:
        settings: Maps dotted keys of params to the values that the key sets.
        why: Explanation for the user.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def import_config(source: Path, target: Path, *, workers: int) -> list[str]:
    """Convert the original config ``source`` to the params file ``target``.

    Args:
        source: Config of the original code (YAML).
        target: Params file to create.
        workers: Number of GPUs. The batch size in ``source`` is multiplied by this number.

    Returns:
        One line per key, which describes the conversion. The lines include absent keys whose default sets a param.

    Raises:
        ValueError: Keys of ``source`` are unknown or missing, or a value has no equivalent in this code.
        FileExistsError: ``target`` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name or remove it")
    given, config = _read(source)
    _refuse(config)
    yaml = YAML()
    params = yaml.load(BASE)
    fates = _fates(config, given, params, workers)
    lines = []
    for key, fate in fates.items():
        changes = "; ".join(_put(params, name, value) for name, value in fate.settings.items())
        why = f" ({fate.why})" if changes and fate.why else fate.why
        lines.append(f"{key}{'' if key in given else ' (absent)'}: {changes}{why}")
    _put(params, "profile", target.stem)
    stream = StringIO()
    yaml.dump(params, stream)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as building:
        written = Path(building) / target.name
        write_text(written, _with_origin(stream.getvalue(), source))
        _check(read(written))
        publish(written, target)
    return lines


def _read(source: Path) -> tuple[dict[str, Any], Released]:
    """Return all entries of ``source``, and the entries that its training reads. Raises ValueError for wrong keys."""
    given = read_mapping(source, holding="keys with values", remedy="pass a config of the released code")
    training = TRAININGS.get(str(given.get("distillation_loss")))
    if training is None:
        raise ValueError(
            f"{source}: distillation_loss is {given.get('distillation_loss')}; it must be {' or '.join(TRAININGS)}"
        )
    known = {each.name: each.default for each in fields(training)}
    unknown = given.keys() - {each.name for each in fields(ReleasedDmd)} - NO_PLACE.keys()
    wrong = [f"unknown key {key}" for key in sorted(map(str, unknown))]
    wrong += [f"missing key {key}" for key in known if known[key] is MISSING and key not in given]
    if wrong:
        raise ValueError(f"{source}: {'; '.join(wrong)} (the keys must be those of the released video configs)")
    return given, build(training, {key: given[key] for key in known if key in given}, name=str(source))


def _refuse(config: Released) -> None:
    """Raise ValueError for values that contradict each other, in the original code or in this code."""
    dmd = config if isinstance(config, ReleasedDmd) else None
    generator = (dmd and dmd.generator_name) or config.model_name
    if config.causal != (generator == "causal_wan"):
        raise ValueError(
            f"generator_task is {config.generator_task}, but the generator is {generator} (generator_name, or else "
            "model_name); causal_video needs causal_wan, bidirectional_video needs wan"
        )
    if dmd and dmd.model_name != "wan":
        raise ValueError(f"model_name is {dmd.model_name}; the teacher and the critic must be bidirectional: use wan")
    if dmd and dmd.causal and dmd.backward_simulation:
        raise ValueError(
            "backward_simulation is true (the released default), but the released code has no backward simulation for "
            "a causal generator: use false, with an LMDB of latents as data_path"
        )
    if config.generator_ckpt and not dmd:
        raise ValueError(
            f"generator_ckpt is {config.generator_ckpt}; the released ODE training has no such key: remove it, and set "
            "train_ode_init.init.folder to the folder of the initial student"
        )


def _fates(config: Released, given: Mapping[str, Any], params: Mapping[str, Any], workers: int) -> dict[str, Fate]:
    """Return the conversions of all keys in the config, and of absent keys whose default sets a param."""
    shift = config.timestep_shift if isinstance(config, ReleasedDmd) else None
    # If the key is absent, the original models use a built-in shift, which is equal to the shift in the profile.
    grid = FlowSchedule(shift=shift or params["schedule"]["shift"])
    times = _times(config, grid)
    fates = _steps(config, grid, times, params["schedule"]["solver_steps"]) | _training(config, workers)
    fates |= _data(config, times) | _student(config, params)
    if isinstance(config, ReleasedDmd):
        fates |= _scores(config) | _video(config, params["model"]["vae"])
    known = {key: Fate(why=why) for key, why in NO_PLACE.items()} | fates
    unread = Fate(why="not used: the ODE regression does not read it")
    absent = {key: fate for key, fate in fates.items() if key not in given and fate.settings}
    return {key: known.get(key, unread) for key in given} | absent


def _steps(config: Released, grid: FlowSchedule, times: Sequence[float], least: int) -> dict[str, Fate]:
    steps = _solver_steps(grid, times, least)
    clean = config.denoising_step_list[-1] == 0
    why = []
    if clean and config.causal:
        why.append("the final 0 is implied: a causal student also receives clean blocks")
    elif clean:
        why.append(
            "with a final 0, the released student also receives clean clips; the bidirectional student here does not"
        )
    elif config.causal:
        why.append("without a final 0, the released student receives no clean blocks; here it does")
    if steps != least:
        why.append(
            f"a solver with {least} steps has no state at some of these timesteps; one with {steps} steps has all"
        )
    settings = {"schedule.denoising_timesteps": times, "schedule.solver_steps": steps}
    how = "positions on the unshifted grid become timesteps" if config.warp_denoising_step else "the list has timesteps"
    return {
        "denoising_step_list": Fate(settings=settings, why="; ".join(why)),
        "warp_denoising_step": Fate(why=how),
    }


def _times(config: Released, grid: FlowSchedule) -> list[float]:
    """Return the student's timesteps without the final 0, rounded to 0.001. Raises ValueError for an invalid list."""
    given = config.denoising_step_list
    noisy = given[:-1] if given[-1:] == [0] else given
    if not noisy or noisy[0] != TRAIN_TIMESTEPS or noisy[-1] <= 0 or any(b >= a for a, b in pairwise(noisy)):
        raise ValueError(
            f"denoising_step_list is {given}; it must start at {TRAIN_TIMESTEPS} (pure noise) and decrease (a final 0 "
            "is the clean end)"
        )
    times = [float(t) for t in noisy]
    if config.warp_denoising_step:
        times = (grid.shifted(torch.tensor(times, dtype=torch.float64) / TRAIN_TIMESTEPS) * TRAIN_TIMESTEPS).tolist()
    return [int(t) if t.is_integer() else t for t in (round(t, 3) for t in times)]


def _solver_steps(grid: FlowSchedule, times: Sequence[float], least: int) -> int:
    """Return the smallest number of Euler steps, at least ``least``, such that the solver has states at all ``times``.

    Raises ValueError if no solver with up to 1000 steps has states at all ``times``.
    """
    for steps in range(least, TRAIN_TIMESTEPS):
        try:
            grid.trajectory_columns(steps, times)
        except ValueError:
            continue
        return steps
    grid.trajectory_columns(TRAIN_TIMESTEPS, times)  # raises an error that names the missing timestep
    return TRAIN_TIMESTEPS


def _training(config: Released, workers: int) -> dict[str, Fate]:
    dmd = isinstance(config, ReleasedDmd)
    stage = "train_dmd" if dmd else "train_ode_init"
    optimizers = [f"{stage}.{name}" for name in (("student_optimizer", "critic_optimizer") if dmd else ("optimizer",))]
    batch = {f"{stage}.batch_size": config.batch_size * workers, "compute.workers": workers}
    precision = "bfloat16" if config.mixed_precision else "float32"
    seed = "0 means a random seed in the released code, and the seed 0 here" if config.seed == 0 else ""
    law = {"train_dmd.clean_frames_in_loss": True, "train_dmd.image_share": 0.0} if dmd else {}
    loss = "the released loss counts clean frames, and no batch has images" if dmd else "the stage train_ode_init"
    return {
        "distillation_loss": Fate(settings=law, why=loss),
        "lr": Fate(settings={f"{name}.learning_rate": config.lr for name in optimizers}),
        "beta1": Fate(settings={f"{name}.betas.0": config.beta1 for name in optimizers}),
        "beta2": Fate(settings={f"{name}.betas.1": config.beta2 for name in optimizers}),
        "batch_size": Fate(settings=batch, why=f"{config.batch_size} on each of {workers} workers"),
        "log_iters": Fate(settings={f"{stage}.checkpoint_every": config.log_iters}),
        "seed": Fate(settings={"seed": config.seed}, why=seed),
        "mixed_precision": Fate(settings={"model.precision": precision}),
        "gradient_checkpointing": Fate(
            settings={"compute.gradient_checkpointing": "full" if config.gradient_checkpointing else "none"}
        ),
    }


def _data(config: Released, times: Sequence[float]) -> dict[str, Fate]:
    """Return the conversion of ``data_path``. Raises ValueError if the training cannot read data of this kind."""
    path, dmd = config.data_path, isinstance(config, ReleasedDmd)
    captions = {"encode_prompts.captions": path}
    simulated = isinstance(config, ReleasedDmd) and config.backward_simulation
    if path.endswith(".txt") != simulated or Path(path).name == (MIXKIT_ODE if dmd else MIXKIT_LATENTS):
        needs = "a .txt of prompts" if simulated else "an LMDB of latents" if dmd else "an LMDB of ODE pairs"
        mode = f" with backward_simulation {str(simulated).lower()}" if dmd else ""
        raise ValueError(f"data_path is {path}; distillation_loss {config.distillation_loss}{mode} needs {needs}")
    if simulated:
        return {"data_path": Fate(settings=captions, why="one prompt per line")}
    store = "latents" if dmd else "ode_pairs"
    settings = {f"pack_lmdb.{store}.source": "released", f"pack_lmdb.{store}.folder": path} | captions
    if dmd:
        return {"data_path": Fate(settings=settings)}
    states = [*times, 0]  # the original code assigns the stored states to the timesteps in its list by position
    if Path(path).name == MIXKIT_ODE and states != MIXKIT_ODE_TIMES:
        raise ValueError(
            f"denoising_step_list is {config.denoising_step_list}; the timesteps in {path} are {MIXKIT_ODE_TIMES}"
        )
    return {"data_path": Fate(settings=settings | {"pack_lmdb.ode_pairs.timesteps": states})}


def _student(config: Released, params: Mapping[str, Any]) -> dict[str, Fate]:
    frames = config.num_frame_per_block if config.causal else None
    blocks = "latent frames" if config.causal else "a bidirectional student generates the whole clip at once"
    unread = {"train_ode_init.steps": 0, "generate_ode_pairs.pairs": 1}  # a training with 0 steps reads no pair
    checkpoint = Fate(settings=unread, why="the released student starts from the teacher's weights")
    if config.generator_ckpt:
        shape = f"--num-attention-heads {params['model']['transformer']['num_attention_heads']}"
        shape += f" --frames-per-block {frames}" if frames else ""
        checkpoint = Fate(
            why="not used: train_ode_init trains such a student; to start from the file instead, run python -m "
            f"causvid.interop.original_checkpoint import {config.generator_ckpt} STUDENT {shape}, then set "
            "train_ode_init.init.folder to STUDENT, train_ode_init.steps to 0 and generate_ode_pairs.pairs to 1"
        )
    return {
        "model_name": Fate(why="the models are defined by model.transformer, and their weights by train_teacher.init"),
        "generator_task": Fate(why="sets model.frames_per_block together with num_frame_per_block"),
        "num_frame_per_block": Fate(settings={"model.frames_per_block": frames}, why=blocks),
        "generator_grad": Fate(why="needs no param here"),
        "generator_ckpt": checkpoint if isinstance(config, ReleasedDmd) else Fate(why="null; needs no param here"),
    }


def _scores(config: ReleasedDmd) -> dict[str, Fate]:
    shift = {"train_dmd.score_shift": config.timestep_shift or 1.0}
    solver = {"schedule.shift": config.timestep_shift} if config.timestep_shift else {}
    inputs = "rollout" if config.backward_simulation else "data"
    same = ("generator_name", "real_score_grad", "fake_score_grad", "real_task_type", "fake_task_type")
    return {key: Fate(why="needs no param here") for key in (*same, "num_train_timestep", "denoising_loss_type")} | {
        "timestep_shift": Fate(
            settings=shift | solver, why="the released code shifts only the score timesteps; here also the solver"
        ),
        "real_guidance_scale": Fate(
            settings={"train_dmd.guidance_scale": config.real_guidance_scale + 1},
            why="released: cond + s (cond - uncond), here: uncond + w (cond - uncond)",
        ),
        "backward_simulation": Fate(settings={"train_dmd.inputs": inputs}),
        "negative_prompt": Fate(settings={"encode_prompts.negative_prompt": config.negative_prompt}),
        "dfake_gen_update_ratio": Fate(
            settings={"train_dmd.critic_updates_per_student_update": config.dfake_gen_update_ratio}
        ),
    }


def _video(config: ReleasedDmd, vae: Mapping[str, Any]) -> dict[str, Fate]:
    """Return the conversion of the shape of latents. Raises ValueError if the VAE has another number of channels."""
    _, frames, channels, height, width = config.image_or_video_shape
    if channels != vae["z_dim"]:
        raise ValueError(
            f"image_or_video_shape is {list(config.image_or_video_shape)}; it must be [B, F, C, H, W] with the "
            f"{vae['z_dim']} channels of the VAE's latents"
        )
    time, space = vae["scale_factor_temporal"], vae["scale_factor_spatial"]
    size = {"video.height": height * space, "video.width": width * space, "video.frames": (frames - 1) * time + 1}
    return {"image_or_video_shape": Fate(settings=size, why="latents [B, F, C, H, W]; B is batch_size")}


def _put(params: Any, dotted: str, value: Any) -> str:
    """Set the param ``dotted`` (a number is an index in a list), and return a description of the change.

    Raises ValueError if there is no such param.
    """
    *above, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    try:
        node = params
        for part in above:
            node = node[part]
        old = node[last]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{BASE} has no key {dotted}; restore the profile from git") from error
    if old == value:  # the value is not set again, so that the notation of the profile is unchanged
        return f"{dotted} remains {_shown(value)}"
    node[last] = value
    return f"{dotted} {_shown(old)} -> {_shown(value)}"


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _with_origin(text: str, source: Path) -> str:
    """Replace the name of the profile in the comment at the top with a description of the converted file."""
    *kept, rest = text.split("\n", 3)
    origin = (
        f"# Converted from {source.name} by causvid.interop.original_config; other values are those of {BASE.name}."
    )
    return "\n".join([*kept, f"{origin} It needs GPUs.", rest[rest.index("profile: ") :]])


def _check(values: Mapping[str, Any]) -> None:
    """Raise the errors that the stages would raise for values that contradict each other."""
    build(ScheduleConfig, values["schedule"], name="schedule")
    build(Compute, values["compute"], name="compute")
    model = values["model"]
    latent = latent_shape(model["vae"], build(VideoShape, values["video"], name="video"))
    BlockLayout(frames=latent.frames, frames_per_block=model["frames_per_block"] or latent.frames)


app = typer.Typer(add_completion=False, help="Convert configs of the original CausVid code to params files.")


@app.callback()
def main() -> None:
    """Do nothing. Without this callback, typer would drop the name of the only command from the command line."""


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="config of the original code (YAML)")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="params file to create")],
    workers: Annotated[int, typer.Option(min=1, help="number of GPUs; the batch size in SRC is per GPU")] = 64,
) -> None:
    """Convert a config of the original code to a params file, and print the conversion of every key."""
    try:
        lines = import_config(source, target, workers=workers)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print("\n".join(lines))
    print(f"{target}: other values are those of {BASE.relative_to(BASE.parents[1])}")


if __name__ == "__main__":
    app()
