"""Build, load and run the causal video autoencoder (AutoencoderKLWan of diffusers), and decode latents in blocks.

Videos are [B, 3, F, H, W] in [-1, 1]. Latents are [B, C, f, h, w], normalised to mean 0 and variance 1 per channel.
The encoder and the decoder process chunks of frames, and cache the inputs of their convolutions. A block of latents can
therefore be decoded before later blocks exist, and the chunks change the result only by rounding. Frames with a side of
more than 1280 pixels are split into overlapping tiles, which changes the result slightly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, patchify, unpatchify
from torch import nn

from causvid.runtime.seeding import derive_seed
from causvid.wan.formats.configs import strides
from causvid.wan.formats.weight_files import load_saved, saved_class
from causvid.wan.vae.tiles import Window, blend, windows

Vae = AutoencoderKLWan  # name of the class for code in other folders
LOG_VARIANCE_START = -6.0  # initial log-variance: with almost no noise, training first learns to reconstruct
MEAN_GAIN = 3.0  # factor of the initial means, so that latents are not too small in the first steps
CHUNK_PIXELS = 2**21  # pixels of a chunk; limits the memory for a 480x832 clip (a 32x32 clip is one chunk)
LONGEST_SIDE = 1280  # largest side of a tile in pixels; the videos of the released Wan models need no tiles
OVERLAP = 256  # pixels that neighbouring tiles share


class Posterior(NamedTuple):
    """Mean and log-variance of the latents before normalisation, each [B, C, f, h, w]."""

    mean: torch.Tensor
    log_variance: torch.Tensor


def build_vae(config: Mapping[str, Any], seed: int) -> AutoencoderKLWan:
    """Build a VAE with random weights that treats every frame like an image.

    In temporal kernels, all taps except the newest tap are zero. Temporal strides keep or repeat the newest frame.
    After training on images, the VAE can therefore encode and decode clips.

    Args:
        config: Arguments of ``AutoencoderKLWan``.
        seed: Seed of the weights, which depend on no other random state.

    Returns:
        The VAE. Its latent statistics are mean 0 and standard deviation 1 until ``set_latent_statistics`` is called.
    """
    channels = config["z_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "vae"))
        vae = AutoencoderKLWan(
            **{"attn_scales": [], **config, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
        )
    with torch.no_grad():
        striding = [m.time_conv for m in vae.modules() if isinstance(m, WanResample) and hasattr(m, "time_conv")]
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3 and module not in striding:
                _keep_newest_tap(module)
        for module in striding:
            _repeat_newest_frame(module)
        vae.quant_conv.weight[:channels] *= MEAN_GAIN
        vae.quant_conv.bias[channels:] = LOG_VARIANCE_START
    return vae


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Load the VAE in ``folder``: frozen, in eval mode, and with its weights in channels-last order.

    Raises:
        ValueError: If ``folder`` contains no AutoencoderKLWan, or if its files are incomplete or from different saves.
    """
    vae = load_saved(saved_class(folder, "VAE", (AutoencoderKLWan,)), folder, dtype)
    return channels_last(vae).requires_grad_(False).eval()


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Store the weights of 3-D convolutions in channels-last order. CPUs are then 1.3 to 2 times as fast."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def posterior(vae: AutoencoderKLWan, video: torch.Tensor) -> Posterior:
    """Encode ``video`` [B, 3, F, H, W] to the posterior of its latents. The result is differentiable."""
    stride = vae.config.scale_factor_spatial
    parts = [
        (window, _encode(vae, window.of(video, stride)))
        for window in _windows(vae, video.shape[3] // stride, video.shape[4] // stride)
    ]
    mean, log_variance = (parts[0][1] if len(parts) == 1 else blend(parts)).chunk(2, dim=1)
    return Posterior(mean, log_variance.clamp(-30.0, 20.0))


def encoder_inputs(vae: AutoencoderKLWan, video: torch.Tensor) -> list[torch.Tensor]:
    """Split ``video`` into inputs of the encoder: the first frame, then chunks of complete latent frames."""
    x = patchify(video, patch_size=vae.config.patch_size) if vae.config.patch_size else video
    x = x.contiguous(memory_format=torch.channels_last_3d)
    stride = strides(vae.config).temporal
    chunk = max(1, CHUNK_PIXELS // (video.shape[3] * video.shape[4]) // stride) * stride
    return [x[:, :, :1], *(x[:, :, 1:].split(chunk, dim=2) if x.shape[2] > 1 else ())]


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Encode ``video`` to normalised latents in float32: the mean of the posterior."""
    return normalise(vae, posterior(vae, video.to(vae.dtype)).mean.float())


def normalise(vae: AutoencoderKLWan, raw: torch.Tensor) -> torch.Tensor:
    """Normalise latents [B, C, f, h, w]: (raw - latents_mean) / latents_std for each channel."""
    mean, deviation = _statistics(vae)
    return (raw - mean.to(raw.device)) / deviation.to(raw.device)


class StreamingDecoder:
    """A decoder for one batch of videos. It is called with one block of latents after another."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.streams: dict[Window, _Stream] = {}

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the next normalised latent frames [B, C, f, h, w] to pixels [B, 3, F, H, W], without clamping."""
        mean, deviation = _statistics(self.vae)
        raw = latents.float() * deviation.to(latents.device) + mean.to(latents.device)
        parts = [
            (window, self.streams.setdefault(window, _Stream(self.vae))(window.of(raw)))
            for window in _windows(self.vae, latents.shape[3], latents.shape[4])
        ]
        return parts[0][1] if len(parts) == 1 else blend(parts, self.vae.config.scale_factor_spatial)


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode the normalised latents of a complete video to pixels in [-1, 1], in float32."""
    return StreamingDecoder(vae)(latents).float().clamp(-1, 1)


def set_latent_statistics(vae: AutoencoderKLWan, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Store the statistics of the latents in the config of the VAE, as diffusers does.

    Args:
        vae: The VAE, which is changed in place.
        mean: Mean of each channel before normalisation [C].
        deviation: Standard deviation of each channel [C].

    Raises:
        ValueError: A statistic is not finite, or a channel is constant and cannot be normalised.
    """
    if not (mean.isfinite().all() and deviation.isfinite().all()):
        raise ValueError(
            "latents are not finite: the VAE's training has diverged; lower train_vae.optimizer.learning_rate"
        )
    dead = [channel for channel, value in enumerate(deviation.tolist()) if not value > 0]
    if dead:
        raise ValueError(f"latent channels {dead} are the same for every clip; lower train_vae.kl_weight")
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())


def is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a convolution kernel of a VAE, but not next to the latents or the RGB output."""
    return name.endswith("weight") and parameter.ndim >= 4 and "quant_conv" not in name and parameter.shape[0] > 3


def to_unit(frames: torch.Tensor) -> torch.Tensor:
    """Convert uint8 frames [..., F, H, W, 3] to a float32 video [..., 3, F, H, W] in [-1, 1]."""
    return frames.movedim(-1, -4).float() / 127.5 - 1


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Convert a video [..., 3, F, H, W] in [-1, 1] to uint8 frames [..., F, H, W, 3], rounded to nearest."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-4, -1).contiguous()


class _Stream:
    """The decoder for one tile of the videos, with the caches of its convolutions."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.cache: list[Any] = [None] * vae._cached_conv_counts["decoder"]
        self.started = False

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        x = self.vae.post_quant_conv(raw.to(self.vae.dtype)).contiguous(memory_format=torch.channels_last_3d)
        out = []
        if not self.started:
            out.append(self.vae.decoder(x[:, :, :1], feat_cache=self.cache, feat_idx=[0], first_chunk=True))
            self.started, x = True, x[:, :, 1:]
        temporal, spatial = strides(self.vae.config)
        pixels = raw.shape[3] * raw.shape[4] * spatial**2 * temporal
        for part in x.split(max(1, CHUNK_PIXELS // pixels), dim=2) if x.shape[2] else ():
            out.append(self.vae.decoder(part, feat_cache=self.cache, feat_idx=[0]))
        video = torch.cat(out, dim=2)
        return unpatchify(video, patch_size=self.vae.config.patch_size) if self.vae.config.patch_size else video


def _encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Encode one tile of a video to mean and log-variance of the latents, concatenated [B, 2C, f, h, w]."""
    cache: list[Any] = [None] * vae._cached_conv_counts["encoder"]
    return vae.quant_conv(
        torch.cat([vae.encoder(part, feat_cache=cache, feat_idx=[0]) for part in encoder_inputs(vae, video)], dim=2)
    )


def _windows(vae: AutoencoderKLWan, height: int, width: int) -> list[Window]:
    """Return the tiles of a latent frame with ``height`` x ``width`` latent pixels."""
    stride = vae.config.scale_factor_spatial
    return windows(height, width, longest=LONGEST_SIDE // stride, overlap=OVERLAP // stride)


def _statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of the latents, each [1, C, 1, 1, 1]."""
    config, shape = vae.config, (1, -1, 1, 1, 1)
    # The dtype is given, because torch's default dtype changes while another thread loads a model.
    mean, deviation = (torch.tensor(x, dtype=torch.float32) for x in (config.latents_mean, config.latents_std))
    return mean.view(shape), deviation.view(shape)


def _keep_newest_tap(conv: WanCausalConv3d) -> None:
    conv.weight[:, :, :-1] = 0
    conv.weight[:, :, -1] *= 3**0.5  # the default initialisation is for a fan-in that is three times as large


def _repeat_newest_frame(conv: WanCausalConv3d) -> None:
    """Make a temporal stride keep the newest frame of each pair (down, C → C) or repeat each frame (up, C → 2C)."""
    conv.weight.zero_()
    conv.bias.zero_()
    for copy in range(conv.out_channels // conv.in_channels):
        for channel in range(conv.in_channels):
            conv.weight[copy * conv.in_channels + channel, channel, -1] = 1
