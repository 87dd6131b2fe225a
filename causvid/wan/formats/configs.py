"""Compute sizes from the configs of Wan's models, and check that the configs of several models fit together.

The functions read mappings with the config keys of AutoencoderKLWan, WanTransformer3DModel and UMT5EncoderModel. They
import neither diffusers nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from causvid.runtime.shapes import LatentShape, VideoShape

# Default values of diffusers for configs without these keys.
_ARCHITECTURE = {"temperal_downsample": (False, True, True), "dim_mult": (1, 2, 4, 4), "patch_size": None}
# Keys that a params section must have, because sizes and costs are computed from the values.
_REQUIRED = {
    "vae": ("z_dim", "scale_factor_temporal", "scale_factor_spatial"),
    "transformer": (
        "patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim",
        "freq_dim", "ffn_dim", "num_layers",
    ),
    "text_encoder": ("d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
}  # fmt: skip


class Strides(NamedTuple):
    """Strides of a VAE.

    Attributes:
        temporal: Number of frames that each latent frame after the first represents.
        spatial: Number of pixels along one side of a latent pixel.
    """

    temporal: int
    spatial: int


def strides(vae: Mapping[str, Any]) -> Strides:
    """Return the strides of a VAE, which follow from its architecture."""
    halvings, levels, patch = (vae.get(name, default) for name, default in _ARCHITECTURE.items())
    return Strides(2 ** sum(halvings), 2 ** (len(levels) - 1) * (patch or 1))


def latent_shape(vae: Mapping[str, Any], video: VideoShape) -> LatentShape:
    """Return the latent shape of a clip of size ``video``. Raises ValueError if the VAE would drop frames or pixels."""
    temporal, spatial = strides(vae)
    return LatentShape.of(video, channels=vae["z_dim"], temporal_stride=temporal, spatial_stride=spatial)


def token_shape(vae: Mapping[str, Any], transformer: Mapping[str, Any], video: VideoShape) -> LatentShape:
    """Return the latent shape of a clip of size ``video``, and check that the transformer can divide it into patches.

    Raises:
        ValueError: The VAE would drop frames or pixels, or the size of the latents is not a multiple of the patch size.
    """
    latent, spatial = latent_shape(vae, video), strides(vae).spatial
    for name, size, patch in zip(("height", "width"), latent.sizes[2:], transformer["patch_size"][1:], strict=True):
        if size % patch:
            raise ValueError(
                f"video.{name} is {size * spatial}; the transformer needs a multiple of {spatial * patch} (stride "
                f"{spatial} of the VAE times patch_size {patch})"
            )
    return latent


def latent_statistics(vae: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return mean [C] and standard deviation [C] of the raw latents, or None if the config has no statistics."""
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    return None if mean is None or std is None else (mean, std)


def missing_keys(**models: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each required key that a config lacks. The keywords are vae, transformer, text_encoder."""
    for section, config in models.items():
        for key in _REQUIRED[section]:
            if key not in config:
                yield f"model.{section} lacks the key {key}; add the key, as in profiles/laptop.yaml"


class Mismatch(NamedTuple):
    """Two config entries with different values that must be equal: section, key and value of both entries."""

    section: str
    key: str
    value: Any
    other_section: str
    other_key: str
    other: Any


def mismatches(
    vae: Mapping[str, Any], transformer: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> Iterator[Mismatch]:
    """Yield the config entries that prevent the three models from working together."""
    for pair in (
        Mismatch("transformer", "in_channels", transformer["in_channels"], "vae", "z_dim", vae["z_dim"]),
        Mismatch("transformer", "out_channels", transformer["out_channels"], "vae", "z_dim", vae["z_dim"]),
        Mismatch(
            "transformer", "text_dim", transformer["text_dim"], "text_encoder", "d_model", text_encoder["d_model"]
        ),
    ):
        if pair.value != pair.other:
            yield pair


def stride_problems(vae: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each stride in the params section ``model.vae`` that contradicts the architecture."""
    for name, stride in zip(("scale_factor_temporal", "scale_factor_spatial"), strides(vae), strict=True):
        if vae[name] != stride:
            yield f"model.vae.{name} is {vae[name]}; the stride of this architecture is {stride}"
