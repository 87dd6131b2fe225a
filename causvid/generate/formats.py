"""Load each kind of checkpoint as a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from causvid import params as params_file
from causvid.compute import device as devices
from causvid.compute.precision import Precision
from causvid.generate.checkpoint import Exported, Released, Trained, find_checkpoint, require_agreement
from causvid.interop.original_checkpoint import load_generator
from causvid.interop.original_wan import load_components
from causvid.pipeline import CausVidPipeline, build_pipeline
from causvid.record import student_of_settings
from causvid.wan.formats.configs import mismatches
from causvid.wan.text_encoder import load_text_encoder
from causvid.wan.transformer.wan import load_transformer, to_precision
from causvid.wan.vae.vae import load_vae


def load_checkpoint(
    checkpoint: Path, *, params: Path | None, wan: Path | None, precision: Precision | None
) -> CausVidPipeline:
    """Find a checkpoint, as ``find_checkpoint`` does, and load it, as ``load`` does."""
    return load(find_checkpoint(checkpoint, params=params, wan=wan), precision)


def load(found: Exported | Trained | Released, precision: Precision | None) -> CausVidPipeline:
    """Build a pipeline from a checkpoint on the device of this process.

    Args:
        found: The checkpoint.
        precision: Precision of the weights; None = as in training.

    Raises:
        ValueError: A part of the checkpoint is damaged or does not match the other parts.
    """
    logging.disable_progress_bar()  # hides the progress of loading weights; the progress of the videos is shown
    try:
        if isinstance(found, Exported):
            pipeline = _from_diffusers(found, precision)
        elif isinstance(found, Released):
            pipeline = _from_released(found, precision)
        else:
            pipeline = _from_transformer(found, precision)
    except (OSError, SafetensorError) as error:  # diffusers and transformers raise these for unusable files
        place = found.file if isinstance(found, Released) else found.folder
        raise ValueError(f"--checkpoint {place} cannot be loaded: {error}") from error
    _require_fitting(pipeline)
    pipeline.to(devices.pick())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _from_diffusers(found: Exported, precision: Precision | None) -> CausVidPipeline:
    folder, name = found.folder, f"{found.folder}/model_index.json"
    dtype = (precision or params_file.build(Precision, found.index["precision"], name=f"{name}: precision")).dtype
    transformer = load_transformer(folder / "transformer", dtype).eval()
    record = student_of_settings(found.index, transformer.config.get("frames_per_block"), name=name)
    require_agreement(folder, record, found.params)
    vae = load_vae(folder / "vae", dtype)
    return build_pipeline(transformer, vae, record, record.schedule, **_text(folder, dtype))


def _from_transformer(found: Trained, precision: Precision | None) -> CausVidPipeline:
    dtype, record = (precision or found.record.precision).dtype, found.record
    transformer = load_transformer(found.folder, dtype).eval()
    if (blocks := transformer.config.get("frames_per_block")) != record.frames_per_block:
        raise ValueError(
            f"{found.folder} has frames_per_block {blocks} (None = bidirectional), but {found.said_by} has "
            f"frames_per_block {record.frames_per_block}; use the params file with which the student was trained"
        )
    vae = load_vae(found.vae, dtype)
    return build_pipeline(transformer, vae, record, record.schedule, **_text(found.text, dtype))


def _from_released(found: Released, precision: Precision | None) -> CausVidPipeline:
    model, record, params = found.model, found.record, found.params
    dtype, blocks = (precision or record.precision).dtype, record.frames_per_block
    compared = ("attention_head_dim", "ffn_dim", "num_layers", "text_dim")
    if missing := {"num_attention_heads", *compared} - (model["transformer"] or {}).keys():
        raise ValueError(f"{params}: model.transformer lacks {', '.join(sorted(missing))}; add it for a model.pt")
    heads = model["transformer"]["num_attention_heads"]
    transformer = load_generator(
        found.file,
        num_attention_heads=heads,
        frames_per_block=1 if blocks is None else blocks,
        causal=blocks is not None,
    )
    for name in compared:
        ours, theirs = model["transformer"][name], transformer.config[name]
        if ours != theirs:
            raise ValueError(
                f"{params}: model.transformer.{name} is {ours}, but {found.file} has {theirs}; name the params file of "
                "this model with --params, such as profiles/wan-1.3b.yaml"
            )
    parts = load_components(found.wan, vae_config=model["vae"], text_config=model["text_encoder"], dtype=dtype)
    vae = torch.nn.Module.to(parts.vae, dtype)  # the method ``to`` of diffusers would print an irrelevant warning
    return build_pipeline(
        to_precision(transformer, dtype),
        vae,
        record,
        record.schedule,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
    )


def _text(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    encoder, tokenizer = load_text_encoder(folder / "text_encoder", folder / "tokenizer", dtype)
    return {"text_encoder": encoder, "tokenizer": tokenizer}


def _require_fitting(pipeline: CausVidPipeline) -> None:
    encoder = pipeline.text_encoder.config.to_dict()
    for it in mismatches(pipeline.vae.config, pipeline.transformer.config, encoder):
        raise ValueError(
            f"the {it.key} of the {it.section} is {it.value}, but the {it.other_key} of the {it.other_section} is "
            f"{it.other}; use models that were trained together"
        )
