"""A pipeline from each of three kinds of checkpoint.

A transformer that this project trained (its VAE and text encoder lie beside it), a ``model.pt`` of the released CausVid
with a Wan2.1 folder beside it, or the folder that ``causvid export`` makes. Sizes, schedule and prompt length of the
first two come from a params file; the third carries its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from causvid import params as params_file
from causvid.diffusion.schedule import ScheduleConfig
from causvid.interop.layouts import require_known_layout
from causvid.interop.original_checkpoint import load_generator
from causvid.interop.original_wan import load_components
from causvid.models.text_encoder import load_text_encoder
from causvid.models.vae import load_vae
from causvid.models.wan import load_transformer, to_precision
from causvid.pipeline import CausVidPipeline
from causvid.runtime import device as devices
from causvid.shapes import VideoShape

# What a pipeline's folder says of itself, beside its models.
SETTINGS = (
    "shift", "solver_steps", "denoising_timesteps", "context_timestep", "text_tokens", "precision",
    "height", "width", "frames", "fps",
)  # fmt: skip


def load_checkpoint(
    checkpoint: Path, *, params: Path, wan: Path | None, precision: devices.Precision | None
) -> CausVidPipeline:
    """The pipeline of ``checkpoint``, on this process's device. precision None: as the params file or the folder says.

    wan: the Wan2.1 folder of a released model.pt; None = the one beside it. Raises ValueError for what is none of the
    three, and for a part that is missing, damaged or does not fit, naming it.
    """
    checkpoint = checkpoint.resolve()
    try:
        require_known_layout(checkpoint)
        if (checkpoint / "model_index.json").is_file():
            pipeline = _from_diffusers(checkpoint, precision)
        elif checkpoint.is_file():
            pipeline = _from_released(checkpoint, params, wan or _wan_beside(checkpoint), precision)
        elif (checkpoint / "config.json").is_file():
            pipeline = _from_ours(checkpoint, params, precision)
        else:
            raise ValueError(
                f"--checkpoint is {checkpoint}; it must be a folder with config.json (trained here), a released "
                "model.pt, or a diffusers folder with model_index.json"
            )
    except (OSError, SafetensorError) as error:  # diffusers' and transformers' words for a file cut short or missing
        raise ValueError(f"--checkpoint {checkpoint} cannot be loaded: {error}") from error
    _require_fitting(pipeline)
    pipeline.to(devices.pick())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _from_diffusers(folder: Path, precision: devices.Precision | None) -> CausVidPipeline:
    try:
        index = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}/model_index.json is damaged ({error}); export the pipeline again") from error
    if missing := [name for name in SETTINGS if name not in index]:
        raise ValueError(
            f"{folder} holds a {index.get('_class_name')} without {', '.join(missing)}: no few-step student; 'causvid "
            "export' makes a folder of one"
        )
    dtype = (precision or devices.Precision(index["precision"])).dtype
    return CausVidPipeline(
        vae=load_vae(folder / "vae", dtype),
        transformer=load_transformer(folder / "transformer", dtype).eval(),
        **_text(folder, dtype),
        **{name: index[name] for name in SETTINGS},
    )


def _from_ours(folder: Path, params: Path, precision: devices.Precision | None) -> CausVidPipeline:
    for part, stage in (("vae", "train_vae"), ("text_encoder", "encode_prompts")):
        if not (folder.parent / part).is_dir():
            raise ValueError(
                f"{folder} needs {folder.parent / part} beside it, which the stage {stage} makes; an imported "
                "model.pt is better given as it is, beside its Wan2.1 folder"
            )
    settings = _settings(params)
    dtype = (precision or devices.Precision(settings["precision"])).dtype
    transformer = load_transformer(folder, dtype).eval()
    blocks, expected = transformer.config.get("frames_per_block"), _frames_per_block(params)
    if blocks != expected:
        raise ValueError(
            f"{folder} has frames_per_block {blocks} (None = bidirectional); {params} has model.frames_per_block "
            f"{expected}: it is no student of that run"
        )
    return CausVidPipeline(
        vae=load_vae(folder.parent / "vae", dtype),
        transformer=transformer,
        **_text(folder.parent / "text_encoder", dtype),
        **settings,
    )


def _from_released(file: Path, params: Path, wan: Path, precision: devices.Precision | None) -> CausVidPipeline:
    model, settings = params_file.read(params)["model"], _settings(params)
    dtype, blocks = (precision or devices.Precision(settings["precision"])).dtype, _frames_per_block(params)
    compared = ("attention_head_dim", "ffn_dim", "num_layers", "text_dim")
    if missing := {"num_attention_heads", *compared} - (model["transformer"] or {}).keys():
        raise ValueError(f"{params}: model.transformer lacks {', '.join(sorted(missing))}, which a model.pt needs")
    heads = model["transformer"]["num_attention_heads"]
    transformer = load_generator(
        file, num_attention_heads=heads, frames_per_block=1 if blocks is None else blocks, causal=blocks is not None
    )
    for name in compared:
        ours, theirs = model["transformer"][name], transformer.config[name]
        if ours != theirs:
            raise ValueError(
                f"{params}: model.transformer.{name} is {ours}, {file} has {theirs}; give its own --params, as "
                "profiles/wan-1.3b.yaml"
            )
    parts = load_components(wan, vae_config=model["vae"], text_config=model["text_encoder"], dtype=dtype)
    return CausVidPipeline(
        vae=torch.nn.Module.to(parts.vae, dtype),  # diffusers' own prints that nothing needs float32
        transformer=to_precision(transformer, dtype),
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        **settings,
    )


def _frames_per_block(params: Path) -> int | None:
    return params_file.section(params, "model.frames_per_block", int | None)  # type: ignore[arg-type]


def _settings(params: Path) -> dict[str, Any]:
    """What a pipeline knows beside its models, of a params file. Its keys are ``SETTINGS``."""
    schedule = params_file.section(params, "schedule", ScheduleConfig)
    video = params_file.section(params, "video", VideoShape)
    precision = params_file.section(params, "model.precision", devices.Precision)
    tokens = params_file.section(params, "model.text_tokens", int)
    return {**asdict(schedule), **asdict(video), "text_tokens": tokens, "precision": str(precision)}


def _text(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    encoder, tokenizer = load_text_encoder(folder / "text_encoder", folder / "tokenizer", dtype)
    return {"text_encoder": encoder, "tokenizer": tokenizer}


def _require_fitting(pipeline: CausVidPipeline) -> None:
    transformer = pipeline.transformer.config
    for ours, size, part, theirs in (
        ("in_channels", transformer.in_channels, "VAE's z_dim", pipeline.vae.config.z_dim),
        ("out_channels", transformer.out_channels, "VAE's z_dim", pipeline.vae.config.z_dim),
        ("text_dim", transformer.text_dim, "text encoder's d_model", pipeline.text_encoder.config.d_model),
    ):
        if size != theirs:
            raise ValueError(f"the transformer's {ours} is {size}, the {part} {theirs}: they were not trained together")


def _wan_beside(file: Path) -> Path:
    found = sorted(path for path in file.parent.glob("Wan2.1*") if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{file} needs one Wan2.1 folder beside it (found: {names}); name it with --wan-folder")
    return found[0]
