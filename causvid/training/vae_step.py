"""Fit the video autoencoder: single frames first, then whole clips; squared error and a little KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from causvid.data.datasets import sample_index
from causvid.data.video_reader import read_frames
from causvid.models.pretrained import Init
from causvid.models.vae import (
    StreamingDecoder,
    build_vae,
    channels_last,
    load_vae,
    normalise,
    posterior,
    set_latent_statistics,
    to_unit,
)
from causvid.runtime import device as devices
from causvid.runtime.distributed import is_main, replicate, share_of
from causvid.runtime.parallel import Compute
from causvid.runtime.seeding import derive_seed, normal
from causvid.runtime.tracking import Tracker, Watch
from causvid.training.checkpoint import Stateful
from causvid.training.optimizers import Optimizer, OptimizerConfig, backward, is_kernel
from causvid.training.speed import Work
from causvid.training.trainer import train

STATISTICS_CLIPS = 256  # enough for one mean and one deviation per channel


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Params section ``train_vae``. steps 0 takes the initial weights as they are; batch sizes are global.

    image_steps of the steps train on single frames; held_out_clips are never trained on.
    """

    init: Init
    steps: NonNegativeInt
    image_steps: NonNegativeInt
    image_batch_size: PositiveInt
    batch_size: PositiveInt
    optimizer: OptimizerConfig
    kl_weight: float
    held_out_clips: PositiveInt
    checkpoint_every: PositiveInt


@dataclass(frozen=True, kw_only=True)
class VaeJob:
    """What a worker needs to train the VAE on ``clips``; the result is the diffusers folder ``work``/export."""

    config: VaeConfig
    vae: Mapping[str, Any]
    seed: int
    clips: tuple[Path, ...]
    work: Path
    tracker: Tracker
    compute: Compute
    watch: Watch
    made_from: Mapping[str, str]

    @property
    def precision(self) -> devices.Precision:
        """The VAE trains in float32, whatever model.precision says."""
        return devices.Precision.FLOAT32


class _Autoencoding(nn.Module):
    """The VAE as one forward pass, the unit that replicas average gradients over."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct ``video`` through a sampled latent; returns squared error and KL per element, both scalars."""
        mean, log_variance = posterior(self.vae, video)
        sample = mean + (0.5 * log_variance).exp() * noise
        reconstructed = StreamingDecoder(self.vae)(normalise(self.vae, sample))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return (reconstructed - video).square().mean(), kl


class VaeStep:
    """One optimizer step of the VAE."""

    def __init__(self, job: VaeJob) -> None:
        self.job, self.device = job, devices.pick()
        vae = channels_last(load_or_build(job)).to(self.device).train().requires_grad_(True)
        self.model = _Autoencoding(vae)
        replicate(self.model, unused_parameters=True)  # a single frame never meets the temporal convolutions
        self.optimizer = Optimizer(self.model, job.config.optimizer, steps=job.config.steps, is_matrix=is_kernel)

    def parts(self) -> dict[str, Stateful]:
        """Weights and optimizer."""
        return {"model": self.model, "optimizer": self.optimizer}

    def export(self, folder: Path) -> None:
        """The VAE; after training with the statistics of its latents."""
        vae = self.model.vae.eval()
        if not is_main():
            return
        if self.job.config.steps:
            _record_statistics(vae, self.job.clips[:STATISTICS_CLIPS])
        vae.save_pretrained(folder)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Squared error + kl_weight KL on single frames (early steps) or clips."""
        config, seed = self.job.config, self.job.seed
        images = step < config.image_steps
        size = config.image_batch_size if images else config.batch_size
        numbers = [step * max(config.image_batch_size, config.batch_size) + position for position in share_of(size)]
        clips = [read_frames(self.job.clips[sample_index(seed, n, len(self.job.clips))]) for n in numbers]
        if images:
            chosen = [
                derive_seed(seed, "frame", number) % len(clip) for number, clip in zip(numbers, clips, strict=True)
            ]
            clips = [clip[at : at + 1] for at, clip in zip(chosen, clips, strict=True)]
        video = to_unit(torch.from_numpy(np.stack(clips))).to(self.device)
        vae = self.model.vae
        latent = latent_size(vae, video)
        noise = torch.stack([normal(latent, seed, "vae_noise", number) for number in numbers]).to(self.device)
        error, kl = self.model(video, noise)
        backward(error + config.kl_weight * kl, step)
        norm = self.optimizer.step(step)
        return {"loss": error, "kl": kl, "grad_norm": norm}

    def work(self, step: int) -> Work:
        """Images or clips; their FLOPs are not counted."""
        config = self.job.config
        return Work(config.image_batch_size if step < config.image_steps else config.batch_size, 0, None)


def latent_size(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[int, int, int, int]:
    """(C, f, h, w) of the latents of ``video`` [B, 3, F, H, W]."""
    config = vae.config
    _, _, frames, height, width = video.shape
    space = config.scale_factor_spatial
    return config.z_dim, (frames - 1) // config.scale_factor_temporal + 1, height // space, width // space


def load_or_build(job: VaeJob) -> AutoencoderKLWan:
    """The VAE that ``init`` names, or one with random weights."""
    found = job.config.init.locate("vae")
    return load_vae(found) if found else build_vae(job.vae, job.seed)


def train_vae(job: VaeJob) -> None:
    """Train the VAE on every rank. Zero steps export the initial weights, statistics and all, as they came."""
    train(VaeStep(job), job)


@torch.no_grad()
def _record_statistics(vae: AutoencoderKLWan, clips: Sequence[Path]) -> None:
    device = next(vae.parameters()).device
    videos = (to_unit(torch.from_numpy(read_frames(clip)))[None].to(device) for clip in clips)
    means = torch.cat([posterior(vae, video).mean[0].flatten(1).cpu() for video in videos], dim=1)
    set_latent_statistics(vae, means.mean(dim=1), means.std(dim=1))
