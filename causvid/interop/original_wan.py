"""Load Wan2.1's VAE and text encoder from the folder that its authors publish (``Wan2.1-T2V-1.3B``).

Format: ``Wan2.1_VAE.pth`` and ``models_t5_umt5-xxl-enc-bf16.pth`` were written by ``torch.save``. Each file contains
one state dict with the key names of wan/modules/vae.py or t5.py in github.com/Wan-Video/Wan2.1. The folder
``google/umt5-xxl`` contains the tokenizer. The VAE of diffusers and UMT5 of transformers have the same layers as Wan's
models under other names, so that the import only renames tensors.

``load_components`` also accepts a folder in diffusers' layout (``vae/``, ``text_encoder/``, ``tokenizer/``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from causvid.interop.checkpoint_files import check_tensors, read_file
from causvid.interop.original_checkpoint import fit
from causvid.wan import text_encoder as saved_text_encoder
from causvid.wan.released_names import TEXT_ENCODER_CONSTANTS, text_encoder_names, vae_name
from causvid.wan.text_encoder import TextEncoder
from causvid.wan.vae import vae as saved_vae
from causvid.wan.vae.vae import Vae

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"

# The files that a folder in Wan's own layout, or in diffusers' layout, must contain.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
_ORIGINAL = (VAE_FILE, TEXT_ENCODER_FILE, *(f"{TOKENIZER_FOLDER}/{name}" for name in _TOKENIZER_FILES))
_DIFFUSERS = ("vae/config.json", "text_encoder/config.json", *(f"tokenizer/{name}" for name in _TOKENIZER_FILES))


class Components(NamedTuple):
    """The VAE and the text encoder, frozen and in eval mode, and the tokenizer. The VAE is in float32."""

    vae: Vae
    text_encoder: TextEncoder
    tokenizer: PreTrainedTokenizerBase


def is_original(folder: Path) -> bool:
    """Return whether ``folder`` has a file that exists only in Wan's own layout."""
    return any((folder / name).is_file() for name in (VAE_FILE, TEXT_ENCODER_FILE))


def load_components(
    folder: Path, *, vae_config: Mapping[str, Any], text_config: Mapping[str, Any], dtype: torch.dtype
) -> Components:
    """Load the VAE, the text encoder and the tokenizer of a folder in Wan's own layout or in diffusers' layout.

    Args:
        folder: The folder.
        vae_config: Config for ``load_vae``. A folder in diffusers' layout contains a config; this argument is ignored.
        text_config: Config for ``load_text_encoder``; ignored for a folder in diffusers' layout.
        dtype: Data type of the text encoder.

    Raises:
        ValueError: Files are missing or invalid, or do not match the configs.
    """
    original = is_original(folder)
    missing = [name for name in (_ORIGINAL if original else _DIFFUSERS) if not (folder / name).is_file()]
    if missing and original:
        raise ValueError(f"{folder} lacks the files {', '.join(missing)} of Wan2.1; download them into this folder")
    if missing:
        raise ValueError(
            f"{folder} lacks the files {', '.join(missing)} of diffusers' layout, and has neither {VAE_FILE} nor "
            f"{TEXT_ENCODER_FILE} of Wan2.1; pass the folder of a complete download"
        )
    if original:
        return Components(load_vae(folder, vae_config), *load_text_encoder(folder, text_config, dtype))
    encoder = saved_text_encoder.load_text_encoder(folder / "text_encoder", folder / "tokenizer", dtype)
    return Components(saved_vae.load_vae(folder / "vae"), *encoder)


def load_vae(folder: Path, config: Mapping[str, Any]) -> Vae:
    """Load the VAE of ``folder``/Wan2.1_VAE.pth, frozen, in float32 and in the memory format channels_last_3d.

    Args:
        folder: The folder of Wan2.1.
        config: diffusers' config with latents_mean and latents_std. Wan stores these statistics in its code, not in the
            file.

    Raises:
        ValueError: The statistics are missing, or the file is truncated, contains code, or has other keys than a VAE
            with ``config``.
    """
    with torch.device("meta"):
        vae = Vae(**config)
    for name in ("latents_mean", "latents_std"):
        numbers = config.get(name) or []
        if len(numbers) != vae.config.z_dim:
            raise ValueError(
                f"model.vae.{name} has {len(numbers)} numbers, but z_dim is {vae.config.z_dim}; {VAE_FILE} does not "
                "contain them, so set one per latent channel (those of Wan are in profiles/wan-1.3b.yaml)"
            )
    path = folder / VAE_FILE
    state = _read_state(path)
    named = {vae_name(key): key for key in state}
    theirs = {ours: named.get(ours, f"{ours} (diffusers' name)") for ours in vae.state_dict()}
    _fill(vae, f"Wan's VAE of model.vae in {path}", state, theirs)
    return saved_vae.channels_last(vae.float()).requires_grad_(False).eval()


def load_text_encoder(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype
) -> tuple[TextEncoder, PreTrainedTokenizerBase]:
    """Load the encoder of ``folder``/models_t5_umt5-xxl-enc-bf16.pth, frozen, and the tokenizer of google/umt5-xxl.

    Args:
        folder: The folder of Wan2.1.
        config: transformers' config. If ``vocab_size`` is absent, the size is inferred from the weights.
        dtype: Data type of the encoder.

    Raises:
        ValueError: A file is missing or truncated, contains code, or has other keys than an encoder with ``config``, or
            ``config`` contradicts a constant in Wan's code.
    """
    for name, value in TEXT_ENCODER_CONSTANTS.items():
        if config.get(name, value) != value:
            raise ValueError(f"model.text_encoder.{name} is {config[name]}; Wan's text encoder needs {value}")
    tokenizer = _load_tokenizer(folder / TOKENIZER_FOLDER)
    path = folder / TEXT_ENCODER_FILE
    state = _read_state(path)
    embedding = state.get("token_embedding.weight")
    rows = {"vocab_size": embedding.shape[0]} if embedding is not None and embedding.ndim == 2 else {}
    with torch.device("meta"):
        encoder = TextEncoder(UMT5Config(**{**rows, **config, "dropout_rate": 0.0}))
    _fill(
        encoder,
        f"Wan's text encoder of model.text_encoder in {path}",
        state,
        text_encoder_names(encoder.config.num_layers),
    )
    encoder.tie_weights()
    return encoder.to(dtype).requires_grad_(False).eval(), tokenizer


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    state = read_file(path)
    check_tensors(str(path), state)
    return state


def _fill(model: nn.Module, name: str, state: Mapping[str, torch.Tensor], theirs: Mapping[str, str]) -> None:
    """Load ``state`` into ``model``. Tied weights remain on the meta device. ``fit`` describes the arguments."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tied = expected.keys() - theirs.keys()
    left = model.load_state_dict(fit(name, state, theirs, expected), strict=False, assign=True)
    assert set(left.missing_keys) == tied, left


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer from the tokenizer.json in ``folder``. Raises ValueError if files are missing or truncated.

    AutoTokenizer would load a wrong tokenizer: transformers 5 builds the T5Tokenizer that the config names, which maps
    unknown characters to T5's token id (2) instead of UMT5's token id (3).
    """
    missing = [name for name in _TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks the files {', '.join(missing)}; download Wan2.1's tokenizer into this folder")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the parser raises many types of exceptions for a truncated file
        raise ValueError(f"{folder} has no complete tokenizer ({type(error).__name__}: {str(error)[:200]})") from error
