"""Turn clips into latents: one shard per clip, finished ones skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt

from causvid.data.manifest import read_manifest
from causvid.data.shards import Shard, shard_path, write_shard
from causvid.data.video_reader import read_frames
from causvid.models.vae import encode, load_vae, to_unit
from causvid.runtime import device as devices
from causvid.runtime.parallel import Compute, Worker, map_groups
from causvid.runtime.progress import progress
from causvid.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Params section ``extract_latents``. batch_size: clips a worker encodes at once."""

    batch_size: PositiveInt


@dataclass(frozen=True, kw_only=True)
class LatentEncoder:
    """A worker that encodes groups of manifest rows into ``out``."""

    clips: Path
    vae: Path
    out: Path
    video: VideoShape
    precision: devices.Precision

    def __call__(self) -> Worker[dict[str, Any]]:
        """Load the VAE, in the worker's own process."""
        return _Encoding(self)


class _Encoding:
    def __init__(self, job: LatentEncoder) -> None:
        self.job = job
        self.device = devices.pick()
        self.vae = load_vae(job.vae, job.precision.dtype).to(self.device)

    @torch.no_grad()
    def __call__(self, group: Sequence[dict[str, Any]]) -> None:
        clips = [read_frames(self.job.clips / row["path"]) for row in group]
        expected = (self.job.video.frames, self.job.video.height, self.job.video.width, 3)
        for row, clip in zip(group, clips, strict=True):
            if clip.shape != expected:
                raise ValueError(f"clip {row['id']} is {clip.shape}, not {expected}; run resample")
        latents = encode(self.vae, to_unit(torch.from_numpy(np.stack(clips))).to(self.device)).cpu()
        for row, latent in zip(group, latents, strict=True):
            write_shard(self.job.out, row["id"], Shard(latent, {"caption": row["caption"]}))


def extract_latents(job: LatentEncoder, config: LatentConfig, compute: Compute) -> dict[str, float]:
    """Encode the clips of ``job.clips`` that have no shard yet. The manifest fixes the groups, not who encodes them."""
    rows = read_manifest(job.clips)
    job.out.mkdir(parents=True, exist_ok=True)
    groups = [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]
    missing = [g for g in groups if not all(shard_path(job.out, row["id"]).is_file() for row in g)]
    done = len(rows) - sum(map(len, missing))
    for _ in progress(map_groups(job, missing, compute), total=len(missing), what="extract_latents"):
        pass
    return {"clips": len(rows), "resumed": done}
