"""Encode and decode clips with the VAE. The reconstructions show the best quality that a latent model can reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causvid.compute import device as devices
from causvid.data.generated import write_clips
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.harness.progress import progress
from causvid.runtime.shapes import VideoShape
from causvid.wan.vae.vae import decode, encode, load_vae, to_uint8, to_unit

BATCH_PIXELS = 2**19  # pixels in all frames of a batch; for example 15 clips of 33 frames of 32 x 32 pixels


@torch.no_grad()
def write_reconstructions(
    vae: Path, clips: Path, rows: Sequence[dict[str, Any]], video: VideoShape, *, crf: int, out: Path
) -> dict[str, float]:
    """Write the reconstructed clips of ``rows`` to ``out``. Return their mean PSNR in dB (peak 255, before H.264)."""
    model = load_vae(vae).to(devices.pick())
    size = max(1, BATCH_PIXELS // (video.frames * video.height * video.width))
    starts = range(0, len(rows), size)
    written, errors = [], []
    for start in progress(starts, total=len(starts), what="reconstruct"):
        group = rows[start : start + size]
        originals = np.stack([read_frames(clips / row["path"]) for row in group])
        clip = to_unit(torch.from_numpy(originals)).to(model.device)
        frames = to_uint8(decode(model, encode(model, clip)))
        errors += list(np.square(frames.cpu().numpy().astype(np.float64) - originals).mean(axis=(1, 2, 3, 4)))
        written += write_clips(out, [row["caption"] for row in group], frames, video, crf, first=start)
    manifest.write_rows(out / manifest.NAME, written)
    psnr = 10 * np.log10(255.0**2 / np.maximum(errors, 1e-10))
    return {"psnr_db": float(psnr.mean()), "held_out_clips": len(rows)}
