"""Compute features of videos for the Frechet distance: pooled activations of the first stage of a VAE's encoder.

Shapes: N videos of F frames of H x W pixels; activations [N, C, f, h, w].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from causvid.compute import device as devices
from causvid.wan.vae.vae import encoder_inputs, load_vae, to_unit

DIMENSIONS = 64  # largest number of features; an estimate of a covariance needs far more videos than features
BATCH_PIXELS = 2**19  # number of pixels in all frames of a batch, for example 16 clips of 33 frames of 32 x 32 pixels


class FeatureNet:
    """Maps videos to features, with the encoder of the VAE in ``folder``.

    Raises:
        ValueError: The folder contains no VAE.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"evaluate.feature_vae is {folder}, which holds no VAE (no config.json); name a folder of one, such as "
                "data/inputs/toy_wan/vae"
            )
        self.vae = load_vae(folder).to(devices.pick())
        self.vae.encoder.down_blocks[0].register_forward_hook(_leave)

    def __call__(self, videos: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Return the features, float64 [N, D] with D <= 64, of videos of one size, each uint8 [F, H, W, 3].

        Raises:
            ValueError: A feature is not finite.
        """
        rows: list[NDArray[np.float64]] = []
        remaining = iter(videos)
        for first in remaining:
            size = max(1, BATCH_PIXELS // (first.size // 3))
            rows.append(self._pooled([first, *islice(remaining, size - 1)]))
        features = np.concatenate(rows) if rows else np.zeros((0, 0))
        if not np.isfinite(features).all():
            raise ValueError(
                "features are not finite: the weights in evaluate.feature_vae are damaged; replace this VAE"
            )
        return features

    @torch.no_grad()
    def _pooled(self, videos: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        video = to_unit(torch.from_numpy(np.stack(videos))).to(self.vae.device)
        cache: list[Any] = [None] * self.vae._cached_conv_counts["encoder"]
        parts: list[torch.Tensor] = []
        for part in encoder_inputs(self.vae, video):
            try:
                self.vae.encoder(part, feat_cache=cache, feat_idx=[0])
            except _Seen as seen:
                parts.append(seen.hidden)
        return pool(torch.cat(parts, dim=2)).double().cpu().numpy()


class _Seen(Exception):
    """Raised to stop the encoder after its first stage, which saves a quarter of the computation. Not an error."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


def _leave(_module: torch.nn.Module, _inputs: tuple[Any, ...], hidden: torch.Tensor) -> None:
    raise _Seen(hidden)


def pool(hidden: torch.Tensor) -> torch.Tensor:
    """Pool activations [N, C, f, h, w] to features [N, D], with a spatial and a temporal feature for each channel.

    The spatial feature is the standard deviation within a frame, averaged over the frames. The temporal feature is the
    mean absolute change from one frame to the next frame; it is 0 for a single frame. If there are more than 32
    channels, only every second, third, ... channel is used, so that D <= 64.
    """
    step = -(-2 * hidden.shape[1] // DIMENSIONS)
    hidden = hidden[:, ::step].float()
    space = hidden.flatten(3).std(dim=3, correction=0).mean(dim=2)
    time = hidden.diff(dim=2).abs().sum(dim=(2, 3, 4)) / max(1, hidden[0, 0, 1:].numel())
    return torch.cat([space, time], dim=1)
