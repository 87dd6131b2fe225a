"""Build a pipeline from each kind of checkpoint.

The kind of the checkpoint determines the source of the settings (schedule, sizes and prompt length):

- For a folder that a stage trained, the settings are read from the training record. The folders of the VAE and the text
  encoder are beside the folder of the transformer.
- For a diffusers folder that ``causvid export`` created, the settings are read from model_index.json.
- For other weights (a ``model.pt`` of the original CausVid code, or a folder of a transformer without a training
  record), the settings are read from a params file and printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from causvid import params as params_file
from causvid.compute import device as devices
from causvid.interop.layouts import require_known_layout
from causvid.interop.original_checkpoint import LAYOUT, load_generator
from causvid.interop.original_wan import load_components
from causvid.pipeline import CausVidPipeline, build_pipeline
from causvid.record import (
    FILE,
    SETTINGS,
    StudentRecord,
    has_record,
    read_student,
    student_of_params,
    student_of_settings,
)
from causvid.wan.formats.configs import mismatches
from causvid.wan.text_encoder import load_text_encoder
from causvid.wan.transformer.wan import load_transformer, to_precision
from causvid.wan.vae.vae import load_vae

PARAMS = Path("params.yaml")  # default params file for weights without a training record


def load_checkpoint(
    checkpoint: Path, *, params: Path | None, wan: Path | None, precision: devices.Precision | None
) -> CausVidPipeline:
    """Build a pipeline from ``checkpoint`` on the device of this process.

    Links are followed only to read files. If ``checkpoint`` is a link, the VAE and the text encoder are searched beside
    the link before they are searched beside the target of the link.

    Args:
        checkpoint: A checkpoint of one of the kinds in the docstring of this module.
        params: Params file. For weights without a training record, the settings are read from this file; None =
            params.yaml. If the checkpoint stores settings, the settings in this file must be equal.
        wan: Wan2.1 folder for a model.pt; None = the Wan2.1 folder beside the model.pt.
        precision: Precision of the weights; None = as in training.

    Raises:
        ValueError: The checkpoint is of no known kind, the weights were trained with other settings than those in
            ``params``, or a part of the checkpoint is missing, is damaged or does not match the other parts.
    """
    places = list(_places(checkpoint))
    checkpoint = places[0]
    try:
        require_known_layout(checkpoint)
        if (checkpoint / "model_index.json").is_file():
            pipeline = _from_diffusers(checkpoint, params, precision)
        elif checkpoint.is_file():
            pipeline = _from_released(checkpoint, params or PARAMS, wan or _wan_beside(places), precision)
        elif (checkpoint / "config.json").is_file():
            pipeline = _from_transformer(places, params, precision)
        else:
            raise ValueError(
                f"--checkpoint is {checkpoint}; it must be a folder with config.json (trained by this project), a "
                "model.pt of the original CausVid code, or a diffusers folder with model_index.json"
            )
    except (OSError, SafetensorError) as error:  # diffusers and transformers raise these for unusable files
        raise ValueError(f"--checkpoint {checkpoint} cannot be loaded: {error}") from error
    _require_fitting(pipeline)
    pipeline.to(devices.pick())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _places(path: Path) -> Iterator[Path]:
    """Yield the absolute form of ``path``, then the target of each link. Raises ValueError for a broken link."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"--checkpoint is {path}, a link to {path.readlink()}, which does not exist; repair the link")
    while True:
        # A path that ends in "." or ".." has no name to keep.
        path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def _from_diffusers(folder: Path, params: Path | None, precision: devices.Precision | None) -> CausVidPipeline:
    try:
        index = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}/model_index.json is damaged ({error}); export the pipeline again") from error
    if missing := [name for name in SETTINGS if name not in index]:
        raise ValueError(
            f"{folder} holds a {index.get('_class_name')} whose model_index.json lacks {', '.join(missing)}; give a "
            "few-step student that 'causvid export' created"
        )
    name = f"{folder}/model_index.json"
    dtype = (precision or params_file.build(devices.Precision, index["precision"], name=f"{name}: precision")).dtype
    transformer = load_transformer(folder / "transformer", dtype).eval()
    record = student_of_settings(index, transformer.config.get("frames_per_block"), name=name)
    _require_agreement(folder, record, params)
    vae = load_vae(folder / "vae", dtype)
    return build_pipeline(transformer, vae, record, record.schedule, **_text(folder, dtype))


def _from_transformer(
    places: Sequence[Path], params: Path | None, precision: devices.Precision | None
) -> CausVidPipeline:
    folder, beside = places[0], _beside(places)
    if has_record(folder):
        record, said_by = read_student(folder), str(folder / FILE)
        record.require_vae(folder, beside / "vae")
        _require_agreement(folder, record, params)
    elif _was_trained_here(folder, beside):
        raise ValueError(
            f"{folder} has no {FILE}: an older version trained this model. Train the model again ('dvc repro "
            "train_dmd' writes data/checkpoints/dmd). If another program wrote the weights, put text_encoder/ and "
            "tokenizer/ in diffusers' layout beside the folder"
        )
    else:
        record, said_by = _record_of_params(folder, params or PARAMS), f"{params or PARAMS}: model"
    dtype = (precision or record.precision).dtype
    transformer = load_transformer(folder, dtype).eval()
    if (blocks := transformer.config.get("frames_per_block")) != record.frames_per_block:
        raise ValueError(
            f"{folder} has frames_per_block {blocks} (None = bidirectional), but {said_by} has frames_per_block "
            f"{record.frames_per_block}; use the params file with which the student was trained"
        )
    text = beside / "text_encoder"
    vae = load_vae(beside / "vae", dtype)
    return build_pipeline(transformer, vae, record, record.schedule, **_text(text if _is_ours(text) else beside, dtype))


def _beside(places: Sequence[Path]) -> Path:
    """Return the folder that contains the VAE and the text encoder. Raises ValueError if either of them is missing."""
    parts = {"vae": "train_vae", "text_encoder": "encode_prompts"}
    for place in places:
        if all((place.parent / part).is_dir() for part in parts):
            return place.parent
    folder = places[0]
    part, stage = next((part, stage) for part, stage in parts.items() if not (folder.parent / part).is_dir())
    raise ValueError(
        f"{folder} needs {folder.parent / part} beside it, which the stage {stage} writes; for a model.pt of the "
        "original CausVid code, give the path of the file, which must be beside its Wan2.1 folder"
    )


def _was_trained_here(folder: Path, beside: Path) -> bool:
    """Return whether a stage of this project wrote ``folder``, although the folder has no training record.

    A text encoder in text_encoder/text_encoder was written by the stage encode_prompts. A folder with the file
    original_layout.json was imported.
    """
    return _is_ours(beside / "text_encoder") and not (folder / LAYOUT).is_file()


def _is_ours(text_encoder: Path) -> bool:
    """Return whether the stage encode_prompts wrote ``text_encoder``, with encoder and tokenizer in subfolders."""
    return (text_encoder / "text_encoder").is_dir()


def _from_released(file: Path, params: Path, wan: Path, precision: devices.Precision | None) -> CausVidPipeline:
    model, record = params_file.read(params)["model"], _record_of_params(file, params)
    dtype, blocks = (precision or record.precision).dtype, record.frames_per_block
    compared = ("attention_head_dim", "ffn_dim", "num_layers", "text_dim")
    if missing := {"num_attention_heads", *compared} - (model["transformer"] or {}).keys():
        raise ValueError(f"{params}: model.transformer lacks {', '.join(sorted(missing))}; add it for a model.pt")
    heads = model["transformer"]["num_attention_heads"]
    transformer = load_generator(
        file, num_attention_heads=heads, frames_per_block=1 if blocks is None else blocks, causal=blocks is not None
    )
    for name in compared:
        ours, theirs = model["transformer"][name], transformer.config[name]
        if ours != theirs:
            raise ValueError(
                f"{params}: model.transformer.{name} is {ours}, but {file} has {theirs}; name the params file of this "
                "model with --params, such as profiles/wan-1.3b.yaml"
            )
    parts = load_components(wan, vae_config=model["vae"], text_config=model["text_encoder"], dtype=dtype)
    vae = torch.nn.Module.to(parts.vae, dtype)  # the method ``to`` of diffusers would print an irrelevant warning
    return build_pipeline(
        to_precision(transformer, dtype),
        vae,
        record,
        record.schedule,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
    )


def _record_of_params(checkpoint: Path, params: Path) -> StudentRecord:
    """Build a record from the params file, for weights without a training record, and print its values on stderr."""
    record = student_of_params(params)
    print(f"{checkpoint} has no training record; values of {params}: {record.describe()}", file=sys.stderr)
    return record


def _require_agreement(folder: Path, record: StudentRecord, params: Path | None) -> None:
    """Raise ValueError if the user gave a params file whose settings differ from the settings in the checkpoint."""
    wrong = record.differences(student_of_params(params).values()) if params else []
    if wrong:
        raise ValueError(
            f"--params is {params}, but {folder} was trained for {'; '.join(wrong)}; omit --params, because the folder "
            "contains these values"
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


def _wan_beside(places: Sequence[Path]) -> Path:
    """Return the Wan2.1 folder beside a model.pt or, if model.pt is a link, beside the target. Raises ValueError."""
    for place in places:
        found = sorted(path for path in place.parent.glob("Wan2.1*") if path.is_dir())
        if len(found) == 1:
            return found[0]
        if found:
            break
    names = ", ".join(path.name for path in found) or "none"
    raise ValueError(f"{places[0]} needs one Wan2.1 folder beside it (found: {names}); name it with --wan-folder")
