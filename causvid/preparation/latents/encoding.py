"""Encode clips to latents, and write one shard per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from causvid.compute import device as devices
from causvid.compute.parallel import BadItem, Compute, map_groups
from causvid.compute.precision import Precision
from causvid.data.shards import Shard, finish, shard_path, write_shard
from causvid.data.videos.manifest import read_manifest
from causvid.data.videos.video_reader import read_frames
from causvid.harness.progress import progress
from causvid.preparation.latents.config import LatentConfig
from causvid.runtime.shapes import VideoShape
from causvid.wan.vae.vae import encode, load_vae, to_unit


@dataclass(frozen=True, kw_only=True)
class LatentEncoder:
    """Encodes groups of manifest rows.

    Attributes:
        clips: Folder of the clips and their manifest.
        vae: Folder of the VAE.
        out: Folder of the shards.
        video: Size and number of frames of every clip.
        precision: Precision of the VAE's weights.
    """

    clips: Path
    vae: Path
    out: Path
    video: VideoShape
    precision: Precision

    def load(self, row: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Return the row and the frames of the clip, uint8 [F, H, W, 3]. Raises BadItem if the clip cannot be used."""
        try:
            frames = read_frames(self.clips / row["path"])
        except ValueError as error:
            raise BadItem("unreadable", str(error)) from error
        expected = (self.video.frames, self.video.height, self.video.width, 3)
        if frames.shape != expected:
            raise BadItem(
                "wrong_size", f"clip {row['id']} has shape {frames.shape}, not {expected}; run resample again"
            )
        return row, frames

    def worker(self) -> _Encoding:
        """Load the VAE."""
        return _Encoding(self)


class _Encoding:
    def __init__(self, encoder: LatentEncoder) -> None:
        self.encoder = encoder
        self.device = devices.pick()
        self.vae = load_vae(encoder.vae, encoder.precision.dtype).to(self.device)

    @torch.no_grad()
    def __call__(self, loaded: Sequence[tuple[dict[str, Any], NDArray[np.uint8]]]) -> Sequence[None]:
        clips = torch.from_numpy(np.stack([frames for _, frames in loaded]))
        latents = encode(self.vae, to_unit(clips.to(self.device))).cpu()
        for (row, _), latent in zip(loaded, latents, strict=True):
            write_shard(self.encoder.out, row["id"], Shard(latent, {"caption": row["caption"]}))
        return ()


def extract_latents(encoder: LatentEncoder, config: LatentConfig, compute: Compute) -> dict[str, float]:
    """Encode the clips that have no shard, and write the index.

    The groups of clips depend only on the manifest, so that the result does not depend on the number of workers.

    Args:
        encoder: The encoder, with its folders and settings.
        config: Params section ``extract_latents``.
        compute: Number of workers.

    Returns:
        Numbers of encoded clips, of rejected clips, and of clips in groups whose shards were already complete.

    Raises:
        ValueError: No clip can be encoded. If some clips can be encoded, rejected.jsonl lists the other clips.
    """
    rows = read_manifest(encoder.clips)
    encoder.out.mkdir(parents=True, exist_ok=True)
    groups = [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]
    missing = [g for g in groups if not all(shard_path(encoder.out, row["id"]).is_file() for row in g)]
    done = len(rows) - sum(map(len, missing))
    rejected: dict[str, dict[str, Any]] = {}
    for handled in progress(map_groups(encoder, missing, compute), total=len(missing), what="extract_latents"):
        for row, bad in handled.bad:
            rejected[row["id"]] = {"id": row["id"], "source": row["source"], "code": bad.code, "reason": bad.reason}
    kept = [{"id": row["id"], "caption": row["caption"]} for row in rows if row["id"] not in rejected]
    if not kept:
        first = rejected[rows[0]["id"]]
        raise ValueError(
            f"none of the {len(rows)} clips can be encoded, for example {first['source']}: {first['reason']}"
        )
    finish(encoder.out, kept, rejected.values())
    return {"clips": len(kept), "rejected": len(rejected), "resumed": done}
