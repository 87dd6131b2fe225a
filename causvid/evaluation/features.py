"""Features of videos for the Frechet distance: what the first stage of a small video VAE's encoder sees, pooled.

Shapes: N videos of F frames, H and W in pixels; C channels of the encoder's first stage, f, h and w in its units.
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

DIMENSIONS = 64  # at most: well below the number of videos, or their covariance says little
BATCH_PIXELS = 2**19  # of all frames of a batch; 16 clips of 33 x 32 x 32


class FeatureNet:
    """The encoder of the VAE in ``folder``, as a function from videos to features.

    Raises ValueError when there is no VAE.
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
        """float64 [N, D] of videos uint8 [F, H, W, 3] of one size; D is at most 64.

        Raises ValueError when a feature is not finite.
        """
        rows: list[NDArray[np.float64]] = []
        waiting = iter(videos)
        for first in waiting:
            size = max(1, BATCH_PIXELS // (first.size // 3))
            rows.append(self._pooled([first, *islice(waiting, size - 1)]))
        found = np.concatenate(rows) if rows else np.zeros((0, 0))
        if not np.isfinite(found).all():
            raise ValueError("features are not finite: the weights in evaluate.feature_vae are damaged")
        return found

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
    """No error: the way out of the encoder, whose rest is a quarter of its work."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


def _leave(_module: torch.nn.Module, _inputs: tuple[Any, ...], hidden: torch.Tensor) -> None:
    raise _Seen(hidden)


def pool(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden activations [N, C, f, h, w] as [N, D]: of each channel how much it varies in space, and in time.

    In space: the standard deviation over a frame, averaged over frames. In time: the mean absolute change from frame to
    frame, 0 when there is one frame. Every channel, or every second, third, ..., so that D is at most 64.
    """
    step = -(-2 * hidden.shape[1] // DIMENSIONS)
    hidden = hidden[:, ::step].float()
    space = hidden.flatten(3).std(dim=3, correction=0).mean(dim=2)
    time = hidden.diff(dim=2).abs().sum(dim=(2, 3, 4)) / max(1, hidden[0, 0, 1:].numel())
    return torch.cat([space, time], dim=1)
