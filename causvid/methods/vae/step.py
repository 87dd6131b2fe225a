"""Train the video autoencoder, first on single frames and then on clips, with squared error and a small KL term."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from causvid.compute import device as devices
from causvid.data.videos.manifest import read_manifest, split
from causvid.data.videos.video_reader import read_frames
from causvid.methods.vae.config import VaeConfig
from causvid.runtime.seeding import derive_seed, normal
from causvid.runtime.shapes import VideoShape
from causvid.speed import Counts
from causvid.training.checkpoint import Stateful
from causvid.training.datasets import sample_index
from causvid.training.distributed import is_main, replicate, share_of
from causvid.training.optimizers import Optimizer, backward
from causvid.training.run import Run
from causvid.training.trainer import train
from causvid.wan.formats.configs import latent_shape
from causvid.wan.vae.vae import (
    StreamingDecoder,
    Vae,
    build_vae,
    channels_last,
    is_kernel,
    load_vae,
    normalise,
    posterior,
    set_latent_statistics,
    to_unit,
)

STATISTICS_CLIPS = 256  # number of clips from which the mean and standard deviation of each channel are computed

VaeRun = Run[VaeConfig, None]


class _Autoencoding(nn.Module):
    """A module whose forward pass encodes and decodes a video, so that DDP can average the gradients of the VAE."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode ``video`` [B, 3, F, H, W], sample a latent, and decode the latent.

        Returns:
            Mean squared error per pixel value, and mean KL divergence per latent value; both are scalars.
        """
        mean, log_variance = posterior(self.vae, video)
        sample = mean + (0.5 * log_variance).exp() * noise
        reconstructed = StreamingDecoder(self.vae)(normalise(self.vae, sample))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return (reconstructed - video).square().mean(), kl


class VaeStep:
    """One optimizer step of the VAE."""

    def __init__(self, run: VaeRun) -> None:
        self.run, self.device = run, devices.pick()
        rows, _ = split(read_manifest(run.inputs["clips"]), run.config.held_out_clips)
        self.clips = [run.inputs["clips"] / row["path"] for row in rows]
        vae = channels_last(_initial(run)).to(self.device).train().requires_grad_(True)
        self.model = _Autoencoding(vae)
        replicate(self.model, unused_parameters=True)  # a single frame skips the temporal convolutions
        self.optimizer = Optimizer(self.model, run.config.optimizer, steps=run.config.steps, is_matrix=is_kernel)

    def state(self) -> dict[str, Stateful]:
        """Return the weights and the optimizer."""
        return {"model": self.model, "optimizer": self.optimizer}

    def export(self, folder: Path) -> None:
        """Save the VAE. After training, also compute and save the statistics of the latents."""
        vae = self.model.vae.eval()
        if not is_main():
            return
        if self.run.config.steps:
            _record_statistics(vae, self.clips[:STATISTICS_CLIPS])
        vae.save_pretrained(folder)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Minimise squared error + kl_weight * KL on single frames (first ``image_steps`` steps) or clips."""
        config, seed = self.run.config, self.run.seed
        images = step < config.image_steps
        size = config.image_batch_size if images else config.batch_size
        numbers = [step * max(config.image_batch_size, config.batch_size) + position for position in share_of(size)]
        clips = [read_frames(self.clips[sample_index(seed, n, len(self.clips))]) for n in numbers]
        if images:
            chosen = [
                derive_seed(seed, "frame", number) % len(clip) for number, clip in zip(numbers, clips, strict=True)
            ]
            clips = [clip[at : at + 1] for at, clip in zip(chosen, clips, strict=True)]
        video = to_unit(torch.from_numpy(np.stack(clips))).to(self.device)
        vae = self.model.vae
        _, _, frames, height, width = video.shape
        # The frame rate has no effect on the shape.
        latent = latent_shape(vae.config, VideoShape(height=height, width=width, frames=frames, fps=1)).sizes
        noise = torch.stack([normal(latent, seed, "vae_noise", number) for number in numbers]).to(self.device)
        error, kl = self.model(video, noise)
        backward(error + config.kl_weight * kl, step)
        norm = self.optimizer.step(step)
        return {"loss": error, "kl": kl, "grad_norm": norm}

    def counts(self, step: int) -> Counts:
        """Return the number of images or clips in ``step``. FLOPs and tokens are not counted."""
        config = self.run.config
        return Counts(config.image_batch_size if step < config.image_steps else config.batch_size, 0, None)


def _initial(run: VaeRun) -> Vae:
    """Return the VAE that ``init`` names, or one with random weights."""
    found = run.config.init.locate("vae")
    return load_vae(found) if found else build_vae(run.network, run.seed)


def train_vae(run: VaeRun) -> None:
    """Train the VAE on every rank. With zero steps, the initial VAE is exported unchanged."""
    train(VaeStep(run), run)


@torch.no_grad()
def _record_statistics(vae: Vae, clips: Sequence[Path]) -> None:
    device = next(vae.parameters()).device
    videos = (to_unit(torch.from_numpy(read_frames(clip)))[None].to(device) for clip in clips)
    means = torch.cat([posterior(vae, video).mean[0].flatten(1).cpu() for video in videos], dim=1)
    set_latent_statistics(vae, means.mean(dim=1), means.std(dim=1))
