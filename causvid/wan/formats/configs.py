"""The configs of Wan's models, as diffusers and transformers save them: the sizes that they imply, and their rules.

All functions read mappings with the keys of AutoencoderKLWan, WanTransformer3DModel and UMT5EncoderModel, so that they
need neither the models nor their libraries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from causvid.runtime.shapes import LatentShape, VideoShape

# diffusers' defaults, for configs without these keys.
_ARCHITECTURE = {"temperal_downsample": (False, True, True), "dim_mult": (1, 2, 4, 4), "patch_size": None}


class Strides(NamedTuple):
    """Strides of a VAE.

    Attributes:
        temporal: Frames in each latent frame but the first.
        spatial: Pixels in a latent pixel, along one side.
    """

    temporal: int
    spatial: int


def strides(vae: Mapping[str, Any]) -> Strides:
    """Return the strides of a VAE, which follow from its architecture."""
    halvings, levels, patch = (vae.get(name, default) for name, default in _ARCHITECTURE.items())
    return Strides(2 ** sum(halvings), 2 ** (len(levels) - 1) * (patch or 1))


def latent_shape(vae: Mapping[str, Any], video: VideoShape) -> LatentShape:
    """Return the shape of the latents of ``video``. Raises ValueError if the VAE would drop frames or pixels."""
    temporal, spatial = strides(vae)
    return LatentShape.of(video, channels=vae["z_dim"], temporal_stride=temporal, spatial_stride=spatial)


def token_shape(vae: Mapping[str, Any], transformer: Mapping[str, Any], video: VideoShape) -> LatentShape:
    """Return the shape of the latents of ``video``, which the transformer divides into patches.

    Raises:
        ValueError: The VAE would drop frames or pixels, or the patches do not fit.
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


class Mismatch(NamedTuple):
    """Two entries of configs that must be equal and are not: the section and key of each, and its value."""

    section: str
    key: str
    value: Any
    other_section: str
    other_key: str
    other: Any


def mismatches(
    vae: Mapping[str, Any], transformer: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> Iterator[Mismatch]:
    """Yield the entries by which three models cannot work together."""
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
    """Yield a sentence for each stride in the params section ``model.vae`` that the architecture does not have."""
    for name, stride in zip(("scale_factor_temporal", "scale_factor_spatial"), strides(vae), strict=True):
        if vae[name] != stride:
            yield f"model.vae.{name} is {vae[name]}; this architecture strides by {stride}"
