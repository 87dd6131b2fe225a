"""The causal video autoencoder (diffusers' AutoencoderKLWan): normalised latents, streaming, and a start that learns.

Videos are [B, 3, F, H, W] in [-1, 1]; latents [B, C, f, h, w], normalised to zero mean and unit variance per channel.
Both directions run over chunks of frames with the convolutions' own caches, so a block of latents decodes as soon as it
is there and the result does not depend on the chunks (to rounding). Frames larger than 1280 a side go in overlapping
windows, whose results are not quite those of the whole.
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
from causvid.wan.vae.tiles import Window, blend, windows
from causvid.wan.weight_files import load_saved, saved_class

LOG_VARIANCE_START = -6.0  # an almost deterministic posterior: reconstruction first
MEAN_GAIN = 3.0  # latents of useful size from the first step
CHUNK_PIXELS = 2**21  # of one video at once; bounds the memory of a 480x832 clip, lets a 32x32 clip pass in one piece
LONGEST_SIDE = 1280  # pixels; what a released VAE's own sizes need in one piece
OVERLAP = 256  # pixels that neighbouring windows share


class Posterior(NamedTuple):
    """Un-normalised mean and log-variance, each [B, C, f, h, w]."""

    mean: torch.Tensor
    log_variance: torch.Tensor


def build_vae(config: Mapping[str, Any], seed: int) -> AutoencoderKLWan:
    """A VAE of ``config`` (diffusers' keys) with random weights inflated from an image autoencoder.

    Every temporal kernel starts as its newest tap only, temporal strides as identity, so what single frames teach holds
    for clips at once. Latent statistics start at mean 0 and deviation 1; ``set_latent_statistics`` fills them.
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
    """Load the VAE saved in ``folder``, frozen, laid out for fast 3-D convolutions.

    Raises:
        ValueError: If there is no AutoencoderKLWan, or if its files are incomplete or of several saves.
    """
    vae = load_saved(saved_class(folder, "VAE", (AutoencoderKLWan,)), folder, dtype)
    return channels_last(vae).requires_grad_(False).eval()


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay 3-D convolution weights out channels last (1.3-2x faster on CPUs); values and state dict are unchanged."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def posterior(vae: AutoencoderKLWan, video: torch.Tensor) -> Posterior:
    """Mean and log-variance of the latents of ``video``, differentiable."""
    stride = vae.config.scale_factor_spatial
    parts = [
        (window, _encode(vae, window.of(video, stride)))
        for window in _windows(vae, video.shape[3] // stride, video.shape[4] // stride)
    ]
    mean, log_variance = (parts[0][1] if len(parts) == 1 else blend(parts)).chunk(2, dim=1)
    return Posterior(mean, log_variance.clamp(-30.0, 20.0))


def encoder_inputs(vae: AutoencoderKLWan, video: torch.Tensor) -> list[torch.Tensor]:
    """``video`` as the encoder takes it with its caches: the first frame, then chunks of whole latent frames."""
    x = patchify(video, patch_size=vae.config.patch_size) if vae.config.patch_size else video
    x = x.contiguous(memory_format=torch.channels_last_3d)
    chunk = max(1, CHUNK_PIXELS // (video.shape[3] * video.shape[4]) // temporal_stride(vae)) * temporal_stride(vae)
    return [x[:, :, :1], *(x[:, :, 1:].split(chunk, dim=2) if x.shape[2] > 1 else ())]


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents of ``video``: the posterior's mean, float32."""
    return normalise(vae, posterior(vae, video.to(vae.dtype)).mean.float())


def normalise(vae: AutoencoderKLWan, raw: torch.Tensor) -> torch.Tensor:
    """(raw - latents_mean) / latents_std per channel."""
    mean, deviation = _statistics(vae)
    return (raw - mean.to(raw.device)) / deviation.to(raw.device)


class StreamingDecoder:
    """Decodes one video's latents block after block, each frame once; first block first."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.streams: dict[Window, _Stream] = {}

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels of the next latent frames ``latents`` (normalised), [B, 3, F, H, W], not clamped."""
        mean, deviation = _statistics(self.vae)
        raw = latents.float() * deviation.to(latents.device) + mean.to(latents.device)
        parts = [
            (window, self.streams.setdefault(window, _Stream(self.vae))(window.of(raw)))
            for window in _windows(self.vae, latents.shape[3], latents.shape[4])
        ]
        return parts[0][1] if len(parts) == 1 else blend(parts, self.vae.config.scale_factor_spatial)


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] of a whole video's normalised latents, float32."""
    return StreamingDecoder(vae)(latents).float().clamp(-1, 1)


def set_latent_statistics(vae: AutoencoderKLWan, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Record per-channel statistics [C] of raw latents in the VAE's config, where diffusers keeps them.

    Raises ValueError for a channel that never changes, whose latents could not be normalised, and for one that is not
    finite.
    """
    if not (mean.isfinite().all() and deviation.isfinite().all()):
        raise ValueError(
            "latents are not finite: the VAE's training has diverged; lower train_vae.optimizer.learning_rate"
        )
    dead = [channel for channel, value in enumerate(deviation.tolist()) if not value > 0]
    if dead:
        raise ValueError(f"latent channels {dead} are the same for every clip; lower train_vae.kl_weight")
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())


def temporal_stride(vae: AutoencoderKLWan) -> int:
    """Frames per latent frame after the first."""
    return int(2 ** sum(vae.config.temperal_downsample))


def to_unit(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [..., F, H, W, 3] frames as float32 video [..., 3, F, H, W] in [-1, 1]."""
    return frames.movedim(-1, -4).float() / 127.5 - 1


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Video [..., 3, F, H, W] in [-1, 1] as uint8 frames [..., F, H, W, 3], rounded to nearest."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-4, -1).contiguous()


class _Stream:
    """The decoder and the caches of its convolutions, for one window of one video."""

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
        pixels = raw.shape[3] * raw.shape[4] * self.vae.config.scale_factor_spatial**2 * temporal_stride(self.vae)
        for part in x.split(max(1, CHUNK_PIXELS // pixels), dim=2) if x.shape[2] else ():
            out.append(self.vae.decoder(part, feat_cache=self.cache, feat_idx=[0]))
        video = torch.cat(out, dim=2)
        return unpatchify(video, patch_size=self.vae.config.patch_size) if self.vae.config.patch_size else video


def _encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Means and log-variances, [B, 2C, f, h, w], of a video small enough for one piece."""
    cache: list[Any] = [None] * vae._cached_conv_counts["encoder"]
    return vae.quant_conv(
        torch.cat([vae.encoder(part, feat_cache=cache, feat_idx=[0]) for part in encoder_inputs(vae, video)], dim=2)
    )


def _windows(vae: AutoencoderKLWan, height: int, width: int) -> list[Window]:
    """Windows of latent frames [height, width]."""
    stride = vae.config.scale_factor_spatial
    return windows(height, width, longest=LONGEST_SIDE // stride, overlap=OVERLAP // stride)


def _statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    config, shape = vae.config, (1, -1, 1, 1, 1)
    # Said, not left to torch's default: loading another model changes that for the whole process for a moment.
    mean, deviation = (torch.tensor(x, dtype=torch.float32) for x in (config.latents_mean, config.latents_std))
    return mean.view(shape), deviation.view(shape)


def _keep_newest_tap(conv: WanCausalConv3d) -> None:
    conv.weight[:, :, :-1] = 0
    conv.weight[:, :, -1] *= 3**0.5  # the fan-in is a third of what the default initialisation assumed


def _repeat_newest_frame(conv: WanCausalConv3d) -> None:
    """Down (C → C): keep the newest frame of each pair. Up (C → 2C): show the newest frame twice."""
    conv.weight.zero_()
    conv.bias.zero_()
    for copy in range(conv.out_channels // conv.in_channels):
        for channel in range(conv.in_channels):
            conv.weight[copy * conv.in_channels + channel, channel, -1] = 1
