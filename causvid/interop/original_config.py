"""Configs of the released CausVid: a params file of ours from one, and what became of each of its keys.

Format: a flat YAML file. One training reads it (``distillation_loss``: dmd or ode) and it says nothing of our other
stages, so these keep the numbers of profiles/wan-1.3b.yaml. Three numbers change on the way:

- guidance: released cond + s (cond - uncond), ours uncond + w (cond - uncond), so w = s + 1;
- batch size: released per GPU, ours over all workers;
- the student's steps: released, under ``warp_denoising_step``, positions on an unshifted grid of 1000; ours are times.

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
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from causvid.compute.parallel import Compute
from causvid.diffusion.flow import TRAIN_TIMESTEPS
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.interop.released_config import TRAININGS, Released, ReleasedDmd
from causvid.params import PROFILES, build, read, read_mapping
from causvid.runtime.files import publish, write_text
from causvid.runtime.shapes import BlockLayout, LatentShape, VideoShape

BASE = PROFILES / "wan-1.3b.yaml"
# No released LMDB tells the times of its states. This one's are known: who published it wrote them.
MIXKIT_ODE, MIXKIT_ODE_TIMES = "mixkit_ode_lmdb", [1000, 757, 522, 0]
MIXKIT_LATENTS = "mixkit_latents_lmdb"

_WHOLE = "no place here: compute.shard_weights keeps transformers in parts over all workers, block by block"
_TRACKED = "no place here: MLflow keeps curves and samples, MLFLOW_TRACKING_URI says where"
NO_PLACE = {
    **dict.fromkeys(("wandb_host", "wandb_key", "wandb_entity", "wandb_project", "wandb_name"), _TRACKED),
    **{f"{name}_fsdp_wrap_strategy": _WHOLE for name in ("generator", "real_score", "fake_score", "text_encoder")},
    "sharding_strategy": _WHOLE,
    "output_path": "no place here: results go below data/ and reports/, as dvc.yaml says",
}


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a key. settings: dotted key of ours → its value; why: what more there is to know."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def import_config(source: Path, target: Path, *, workers: int) -> list[str]:
    """Make the params file ``target`` of the released config ``source``; returns a line for each of its keys.

    workers: GPUs, each with a batch of its own (released: 64). Raises ValueError naming what there is none of here,
    FileExistsError when ``target`` is there.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name or remove it")
    given, config = _read(source)
    _refuse(config)
    yaml = _yaml()
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
    """The keys of ``source``, all of them and those that mean something. Raises ValueError naming every wrong one."""
    given = read_mapping(source, holding="keys with values", remedy="name a config of the released code")
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
    """Raise ValueError for keys that do not go together, there or here."""
    dmd = config if isinstance(config, ReleasedDmd) else None
    generator = (dmd and dmd.generator_name) or config.model_name
    if config.causal != (generator == "causal_wan"):
        raise ValueError(
            f"generator_task is {config.generator_task}, the generator {generator} (generator_name, else model_name); "
            "causal_video needs causal_wan, bidirectional_video needs wan"
        )
    if dmd and dmd.model_name != "wan":
        raise ValueError(f"model_name is {dmd.model_name}; teacher and critic are bidirectional here: use wan")
    if dmd and dmd.causal and dmd.backward_simulation:
        raise ValueError(
            "backward_simulation is true, its released default, with a causal generator, which the released code has "
            "no simulation for: use false, with an LMDB of latents as data_path"
        )
    if config.generator_ckpt and not dmd:
        raise ValueError(
            f"generator_ckpt is {config.generator_ckpt}; the released ODE training has no such key: drop it, and name "
            "a student to start from as train_ode_init.init.folder"
        )


def _fates(config: Released, given: Mapping[str, Any], params: Mapping[str, Any], workers: int) -> dict[str, Fate]:
    """What becomes of every given key, and of those whose absence sets something here."""
    shift = config.timestep_shift if isinstance(config, ReleasedDmd) else None
    # Without the key: the shift that the released models have built in, which is the profile's.
    grid = FlowSchedule(shift=shift or params["schedule"]["shift"])
    times = _times(config, grid)
    fates = _steps(config, grid, times, params["schedule"]["solver_steps"]) | _training(config, workers)
    fates |= _data(config, times) | _student(config, params)
    if isinstance(config, ReleasedDmd):
        fates |= _scores(config) | _video(config, params["model"]["vae"])
    told = {key: Fate(why=why) for key, why in NO_PLACE.items()} | fates
    unread = Fate(why="left out: the ODE regression does not read it")
    absent = {key: fate for key, fate in fates.items() if key not in given and fate.settings}
    return {key: told.get(key, unread) for key in given} | absent


def _steps(config: Released, grid: FlowSchedule, times: Sequence[float], least: int) -> dict[str, Fate]:
    steps = _solver_steps(grid, times, least)
    clean = config.denoising_step_list[-1] == 0
    why = []
    if clean and config.causal:
        why.append("the last 0 goes without saying: a causal student is given clean blocks as well")
    elif clean:
        why.append("by its last 0 the released student is given clean clips as well; ours is bidirectional and is not")
    elif config.causal:
        why.append("without a last 0 the released student is given no clean blocks; ours is")
    if steps != least:
        why.append(f"a solver of {least} steps misses some of these times, one of {steps} passes through all")
    settings = {"schedule.denoising_timesteps": times, "schedule.solver_steps": steps}
    how = "positions on the unshifted grid, made times" if config.warp_denoising_step else "the list holds times"
    return {
        "denoising_step_list": Fate(settings=settings, why="; ".join(why)),
        "warp_denoising_step": Fate(why=how),
    }


def _times(config: Released, grid: FlowSchedule) -> list[float]:
    """The student's steps without the clean end, to 0.001. Raises ValueError for a list that is none of steps."""
    given = config.denoising_step_list
    noisy = given[:-1] if given[-1:] == [0] else given
    if not noisy or noisy[0] != TRAIN_TIMESTEPS or noisy[-1] <= 0 or any(b >= a for a, b in pairwise(noisy)):
        raise ValueError(
            f"denoising_step_list is {given}; it must start at {TRAIN_TIMESTEPS}, pure noise, and fall from there "
            "(a last 0 is the clean end)"
        )
    times = [float(t) for t in noisy]
    if config.warp_denoising_step:
        times = (grid.shifted(torch.tensor(times, dtype=torch.float64) / TRAIN_TIMESTEPS) * TRAIN_TIMESTEPS).tolist()
    return [int(t) if t.is_integer() else t for t in (round(t, 3) for t in times)]


def _solver_steps(grid: FlowSchedule, times: Sequence[float], least: int) -> int:
    """The fewest Euler steps, from ``least`` to 1000, whose states hold ``times``. Raises ValueError if none do."""
    for steps in range(least, TRAIN_TIMESTEPS):
        try:
            grid.trajectory_columns(steps, times)
        except ValueError:
            continue
        return steps
    grid.trajectory_columns(TRAIN_TIMESTEPS, times)  # raises, naming the time that no grid holds
    return TRAIN_TIMESTEPS


def _training(config: Released, workers: int) -> dict[str, Fate]:
    dmd = isinstance(config, ReleasedDmd)
    stage = "train_dmd" if dmd else "train_ode_init"
    optimizers = [f"{stage}.{name}" for name in (("student_optimizer", "critic_optimizer") if dmd else ("optimizer",))]
    batch = {f"{stage}.batch_size": config.batch_size * workers, "compute.workers": workers}
    precision = "bfloat16" if config.mixed_precision else "float32"
    seed = "a 0 of theirs draws a new seed every time; here it is the seed 0" if config.seed == 0 else ""
    law = {"train_dmd.clean_frames_in_loss": True, "train_dmd.image_share": 0.0} if dmd else {}
    loss = "theirs counts clean frames too, and trains on videos alone" if dmd else "our stage train_ode_init"
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
    """Raises ValueError for a data_path that this training cannot read."""
    path, dmd = config.data_path, isinstance(config, ReleasedDmd)
    captions = {"encode_prompts.captions": path}
    simulated = isinstance(config, ReleasedDmd) and config.backward_simulation
    if path.endswith(".txt") != simulated or Path(path).name == (MIXKIT_ODE if dmd else MIXKIT_LATENTS):
        needs = "a .txt of prompts" if simulated else "an LMDB of latents" if dmd else "an LMDB of ODE pairs"
        mode = f" with backward_simulation {str(simulated).lower()}" if dmd else ""
        raise ValueError(f"data_path is {path}; distillation_loss {config.distillation_loss}{mode} needs {needs}")
    if simulated:
        return {"data_path": Fate(settings=captions, why="a prompt a line")}
    store = "latents" if dmd else "ode_pairs"
    settings = {f"pack_lmdb.{store}.source": "released", f"pack_lmdb.{store}.folder": path} | captions
    if dmd:
        return {"data_path": Fate(settings=settings)}
    states = [*times, 0]  # the released code pairs its list with the stored states by position
    if Path(path).name == MIXKIT_ODE and states != MIXKIT_ODE_TIMES:
        raise ValueError(
            f"denoising_step_list is {config.denoising_step_list}; the states in {path} are at {MIXKIT_ODE_TIMES}"
        )
    return {"data_path": Fate(settings=settings | {"pack_lmdb.ode_pairs.timesteps": states})}


def _student(config: Released, params: Mapping[str, Any]) -> dict[str, Fate]:
    frames = config.num_frame_per_block if config.causal else None
    blocks = "latent frames" if config.causal else "a bidirectional student makes the whole clip at once"
    unread = {"train_ode_init.steps": 0, "generate_ode_pairs.pairs": 1}  # zero steps read no pair
    checkpoint = Fate(settings=unread, why="theirs starts from the teacher's weights")
    if config.generator_ckpt:
        shape = f"--num-attention-heads {params['model']['transformer']['num_attention_heads']}"
        shape += f" --frames-per-block {frames}" if frames else ""
        checkpoint = Fate(
            why="train_ode_init makes its like; to start from the file itself, run python -m "
            f"causvid.interop.original_checkpoint import {config.generator_ckpt} STUDENT {shape}, then set "
            "train_ode_init.init.folder to STUDENT, train_ode_init.steps to 0 and generate_ode_pairs.pairs to 1"
        )
    return {
        "model_name": Fate(why="the models are of model.transformer, their weights those of train_teacher.init"),
        "generator_task": Fate(why="says model.frames_per_block, with num_frame_per_block"),
        "num_frame_per_block": Fate(settings={"model.frames_per_block": frames}, why=blocks),
        "generator_grad": Fate(why="the same here"),
        "generator_ckpt": checkpoint if isinstance(config, ReleasedDmd) else Fate(why="none, the same here"),
    }


def _scores(config: ReleasedDmd) -> dict[str, Fate]:
    shift = {"train_dmd.score_shift": config.timestep_shift or 1.0}
    solver = {"schedule.shift": config.timestep_shift} if config.timestep_shift else {}
    inputs = "rollout" if config.backward_simulation else "data"
    same = ("generator_name", "real_score_grad", "fake_score_grad", "real_task_type", "fake_task_type")
    return {key: Fate(why="the same here") for key in (*same, "num_train_timestep", "denoising_loss_type")} | {
        "timestep_shift": Fate(
            settings=shift | solver, why="theirs shifts the scores' times alone, ours the solver's too"
        ),
        "real_guidance_scale": Fate(
            settings={"train_dmd.guidance_scale": config.real_guidance_scale + 1},
            why="theirs is added to the conditional side, ours counts from the unconditional one",
        ),
        "backward_simulation": Fate(settings={"train_dmd.inputs": inputs}),
        "negative_prompt": Fate(settings={"encode_prompts.negative_prompt": config.negative_prompt}),
        "dfake_gen_update_ratio": Fate(
            settings={"train_dmd.critic_updates_per_student_update": config.dfake_gen_update_ratio}
        ),
    }


def _video(config: ReleasedDmd, vae: Mapping[str, Any]) -> dict[str, Fate]:
    """Pixels and frames of the latents. Raises ValueError for channels that are not the VAE's."""
    _, frames, channels, height, width = config.image_or_video_shape
    if channels != vae["z_dim"]:
        raise ValueError(
            f"image_or_video_shape is {list(config.image_or_video_shape)}; the VAE's latents have {vae['z_dim']} "
            "channels: [B, F, C, H, W]"
        )
    time, space = vae["scale_factor_temporal"], vae["scale_factor_spatial"]
    size = {"video.height": height * space, "video.width": width * space, "video.frames": (frames - 1) * time + 1}
    return {"image_or_video_shape": Fate(settings=size, why="latents [B, F, C, H, W]; its B is batch_size")}


def _put(params: Any, dotted: str, value: Any) -> str:
    """Set our key ``dotted`` (a number is a place in a list); returns what changed. ValueError if there is none."""
    *above, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    try:
        node = params
        for part in above:
            node = node[part]
        old = node[last]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{BASE} has no key {dotted}; use the profile this code was made for") from error
    if old == value:  # left as it is written
        return f"{dotted} stays {_shown(value)}"
    node[last] = CommentedSeq(value) if isinstance(value, list) else value
    if isinstance(value, list):
        node[last].fa.set_flow_style()
    return f"{dotted} {_shown(old)} -> {_shown(value)}"


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _yaml() -> YAML:
    """A round trip that keeps comments, long lines, quotes and the word null."""

    class Writer(RoundTripRepresenter):
        pass

    Writer.add_representer(type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.Representer, yaml.preserve_quotes, yaml.width = Writer, True, 4096
    return yaml


def _with_origin(text: str, source: Path) -> str:
    """``text`` under a first comment that says what this file is, not what the profile is."""
    title, _, rest = text.partition("\n")
    origin = f"# Made of {source.name} by causvid.interop.original_config; what that says nothing of is {BASE.name}'s."
    return "\n".join([title, f"{origin} It needs GPUs.", rest[rest.index("profile: ") :]])


def _check(values: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers that do not go together, in the words a stage would use."""
    build(ScheduleConfig, values["schedule"], name="schedule")
    build(Compute, values["compute"], name="compute")
    vae, model = values["model"]["vae"], values["model"]
    latent = LatentShape.of(
        build(VideoShape, values["video"], name="video"),
        channels=vae["z_dim"],
        temporal_stride=vae["scale_factor_temporal"],
        spatial_stride=vae["scale_factor_spatial"],
    )
    BlockLayout(frames=latent.frames, frames_per_block=model["frames_per_block"] or latent.frames)


app = typer.Typer(add_completion=False, help="Released configs: params files of ours from them.")


@app.callback()
def main() -> None:
    """Keep the command's name in the command line, though there is but one."""


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="a released config, YAML")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="params file to make")],
    workers: Annotated[int, typer.Option(min=1, help="GPUs it is for; batch sizes are per GPU there")] = 64,
) -> None:
    """Make a params file and say what became of every key."""
    try:
        lines = import_config(source, target, workers=workers)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print("\n".join(lines))
    print(f"{target}: everything else as in {BASE.relative_to(BASE.parents[1])}")


if __name__ == "__main__":
    app()
