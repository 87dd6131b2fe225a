"""Wan2.1's own VAE and text encoder, out of the folder that its authors publish (``Wan2.1-T2V-1.3B``).

Format: ``Wan2.1_VAE.pth`` and ``models_t5_umt5-xxl-enc-bf16.pth`` are ``torch.save`` of one state dict each, with the
key names of wan/modules/vae.py and t5.py in github.com/Wan-Video/Wan2.1; ``google/umt5-xxl`` holds the tokenizer. The
layers are those of diffusers' VAE and transformers' UMT5 under other names, so values go through untouched.

``load_components`` also takes a folder in diffusers' layout (``vae/``, ``text_encoder/``, ``tokenizer/``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from causvid.interop.checkpoint_files import check_tensors, read_file
from causvid.interop.original_checkpoint import fit
from causvid.wan import text_encoder as saved_text_encoder
from causvid.wan.vae import vae as saved_vae

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"

# Files that a folder of each layout must hold.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
_ORIGINAL = (VAE_FILE, TEXT_ENCODER_FILE, *(f"{TOKENIZER_FOLDER}/{name}" for name in _TOKENIZER_FILES))
_DIFFUSERS = ("vae/config.json", "text_encoder/config.json", *(f"tokenizer/{name}" for name in _TOKENIZER_FILES))

# Wan's name → transformers' name, each with ".weight"; the embedding is tied to encoder.embed_tokens.
_MODULES = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_BLOCK_MODULES = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",  # the side that goes through the GELU
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
# Constants of Wan's code that leave no trace in the weights.
_FIXED = {"relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu"}


class Components(NamedTuple):
    """What a generator needs beside it. All frozen and in eval mode; the VAE is float32."""

    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase


def is_original(folder: Path) -> bool:
    """Whether ``folder`` has one of the files that only Wan's own layout has."""
    return any((folder / name).is_file() for name in (VAE_FILE, TEXT_ENCODER_FILE))


def load_components(
    folder: Path, *, vae_config: Mapping[str, Any], text_config: Mapping[str, Any], dtype: torch.dtype
) -> Components:
    """VAE, text encoder (``dtype``) and tokenizer of ``folder``, in Wan's own layout or in diffusers'.

    The configs are those of ``load_vae`` and ``load_text_encoder``; a folder in diffusers' layout brings its own.
    Raises ValueError naming the files that are missing, and as the two loaders do.
    """
    original = is_original(folder)
    missing = [name for name in (_ORIGINAL if original else _DIFFUSERS) if not (folder / name).is_file()]
    if missing and original:
        raise ValueError(f"{folder} lacks {', '.join(missing)} of Wan2.1's own files; download them into it")
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} of diffusers' layout, and has neither {VAE_FILE} nor "
            f"{TEXT_ENCODER_FILE} of Wan2.1's own; give the folder of a whole download"
        )
    if original:
        return Components(load_vae(folder, vae_config), *load_text_encoder(folder, text_config, dtype))
    encoder = saved_text_encoder.load_text_encoder(folder / "text_encoder", folder / "tokenizer", dtype)
    return Components(saved_vae.load_vae(folder / "vae"), *encoder)


def load_vae(folder: Path, config: Mapping[str, Any]) -> AutoencoderKLWan:
    """The VAE of ``folder``/Wan2.1_VAE.pth, frozen, float32, laid out for fast 3-D convolutions.

    ``config`` has diffusers' keys and must bring the latent statistics, which Wan keeps in its code. Raises ValueError
    for statistics that are not there, and for a file that is cut, holds code or has not exactly the keys of ``config``.
    """
    with torch.device("meta"):
        vae = AutoencoderKLWan(**config)
    for name in ("latents_mean", "latents_std"):
        numbers = config.get(name) or []
        if len(numbers) != vae.config.z_dim:
            raise ValueError(
                f"model.vae.{name} has {len(numbers)} numbers, z_dim is {vae.config.z_dim}; {VAE_FILE} holds none, so "
                "give one per latent channel (profiles/wan-1.3b.yaml has Wan's)"
            )
    path = folder / VAE_FILE
    state = _read_state(path)
    named = {_diffusers_name(key): key for key in state}
    theirs = {ours: named.get(ours, f"{ours} (diffusers' name)") for ours in vae.state_dict()}
    _fill(vae, f"Wan's VAE of model.vae in {path}", state, theirs)
    return saved_vae.channels_last(vae.float()).requires_grad_(False).eval()


def load_text_encoder(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype
) -> tuple[UMT5EncoderModel, PreTrainedTokenizerBase]:
    """The encoder of ``folder``/models_t5_umt5-xxl-enc-bf16.pth, frozen, and the tokenizer of google/umt5-xxl.

    ``config`` has transformers' keys; without ``vocab_size`` the weights say it. Raises ValueError for a file that is
    missing, cut, holds code or has not exactly the keys of ``config``, and for a constant that Wan's code has not.
    """
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"model.text_encoder.{name} is {config[name]}, Wan's text encoder was made with {value}")
    tokenizer = _load_tokenizer(folder / TOKENIZER_FOLDER)
    path = folder / TEXT_ENCODER_FILE
    state = _read_state(path)
    embedding = state.get("token_embedding.weight")
    rows = {"vocab_size": embedding.shape[0]} if embedding is not None and embedding.ndim == 2 else {}
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**{**rows, **config, "dropout_rate": 0.0}))
    _fill(encoder, f"Wan's text encoder of model.text_encoder in {path}", state, _text_names(encoder.config.num_layers))
    encoder.tie_weights()
    return encoder.to(dtype).requires_grad_(False).eval(), tokenizer


def _diffusers_name(key: str) -> str:
    """diffusers' name of the VAE's weight that Wan calls ``key``; ``key`` itself for a name that Wan has not."""
    try:
        (name,) = convert_wan_vae_to_diffusers({key: None})
    except ValueError:  # a block's number that is none
        return key
    return str(name)


def _text_names(layers: int) -> dict[str, str]:
    """transformers' name → Wan's name of every weight of an encoder of ``layers`` blocks."""
    modules = dict(_MODULES)
    for block in range(layers):
        modules |= {f"blocks.{block}.{key}": f"encoder.block.{block}.{ours}" for key, ours in _BLOCK_MODULES.items()}
    return {f"{ours}.weight": f"{key}.weight" for key, ours in modules.items()}


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    state = read_file(path)
    check_tensors(str(path), state)
    return state


def _fill(model: nn.Module, name: str, state: Mapping[str, torch.Tensor], theirs: Mapping[str, str]) -> None:
    """Put ``state`` into ``model``, which is on the meta device; weights tied to others stay there."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tied = expected.keys() - theirs.keys()
    left = model.load_state_dict(fit(name, state, theirs, expected), strict=False, assign=True)
    assert set(left.missing_keys) == tied, left


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as its tokenizer.json has it.

    Not AutoTokenizer: transformers 5 rebuilds the T5Tokenizer that the folder names, with T5's number for unknown
    characters (2) in place of UMT5's (3). Raises ValueError for files that are missing or cut.
    """
    missing = [name for name in _TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; download Wan2.1's tokenizer into it")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # a foreign parser with many ways to fail on a file that is cut
        raise ValueError(f"{folder} holds no whole tokenizer ({type(error).__name__}: {str(error)[:200]})") from error
