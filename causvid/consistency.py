"""Rules between the sections of a params file: frames and strides, blocks, few steps and the solver's grid, batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from causvid import params as params_file
from causvid.data.stores.prompt_store import require_tokens
from causvid.diffusion.schedule import ScheduleConfig
from causvid.harness.inputs import path_problems
from causvid.methods.dmd.config import DmdConfig
from causvid.runtime.shapes import BlockLayout, LatentShape, VideoShape


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence, with the remedy, for each rule that the sections of a params file break."""
    yield from path_problems(values)
    model, sample = values["model"], values["sample"]
    vae, transformer = model["vae"], model["transformer"]
    try:
        latent = latent_shape(values)
        BlockLayout(frames=latent.frames, frames_per_block=model["frames_per_block"] or latent.frames)
        for name, size, patch in zip(("height", "width"), latent.sizes[2:], transformer["patch_size"][1:], strict=True):
            if size % patch:
                yield f"video.{name} makes {size} latent units; model.transformer.patch_size is {patch}"
    except ValueError as error:
        yield str(error)
    try:
        params_file.build(ScheduleConfig, values["schedule"], name="schedule")
    except ValueError as error:
        yield str(error)
    try:
        require_tokens(params_file.build(int, model["text_tokens"], name="model.text_tokens"))
    except ValueError as error:
        yield str(error)
    for name in ("in_channels", "out_channels"):
        if transformer[name] != vae["z_dim"]:
            yield f"model.transformer.{name} is {transformer[name]}; it must be model.vae.z_dim, {vae['z_dim']}"
    if transformer["text_dim"] != model["text_encoder"]["d_model"]:
        yield f"model.transformer.text_dim must be model.text_encoder.d_model, {model['text_encoder']['d_model']}"
    strides = 2 ** sum(vae["temperal_downsample"]), 2 ** (len(vae["dim_mult"]) - 1) * (vae["patch_size"] or 1)
    for name, stride in zip(("scale_factor_temporal", "scale_factor_spatial"), strides, strict=True):
        if vae[name] != stride:
            yield f"model.vae.{name} is {vae[name]}; this architecture strides by {stride}"
    for name, count in (("sample.rollouts", sample["rollouts"]), ("report.rows", values["report"]["rows"])):
        if count > sample["videos"]:
            yield f"{name} is {count}; there are only sample.videos {sample['videos']}"
    if values["train_teacher"]["causal"] and not model["frames_per_block"]:
        yield "train_teacher.causal is true; it needs model.frames_per_block, latent frames in a block, not null"
    workers, passes = values["compute"]["workers"], values["compute"]["gradient_accumulation_steps"]
    for stage in ("train_vae", "train_teacher", "train_ode_init", "train_dmd"):
        size, many = values[stage]["batch_size"], 1 if stage == "train_vae" else passes
        if values[stage]["steps"] and size % workers:
            yield f"{stage}.batch_size is {size}; compute.workers {workers} must divide it"
        elif values[stage]["steps"] and size // workers % many:
            yield (
                f"{stage}.batch_size is {size}, {size // workers} for each of compute.workers {workers}; "
                f"compute.gradient_accumulation_steps {many} must divide that"
            )
    try:
        params_file.build(DmdConfig, values["train_dmd"], name="train_dmd")
    except ValueError as error:
        yield str(error)


def refuse_problems(params: Path) -> None:
    """Raise ValueError if the sections of the file ``params`` break a rule. The message names all problems."""
    found = list(problems(params_file.read(params)))
    if found:
        raise ValueError("; ".join(found))


def latent_shape(values: Mapping[str, Any]) -> LatentShape:
    """Return the shape of a clip's latents. Raises ValueError if the clip does not fit the strides of the VAE."""
    vae = values["model"]["vae"]
    latent: LatentShape = LatentShape.of(
        params_file.build(VideoShape, values["video"], name="video"),
        channels=vae["z_dim"],
        temporal_stride=vae["scale_factor_temporal"],
        spatial_stride=vae["scale_factor_spatial"],
    )
    return latent
