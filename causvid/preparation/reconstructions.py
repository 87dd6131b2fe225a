"""Clips through the VAE and back: what the best possible latent model could look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causvid.data import manifest
from causvid.data.generated import write_clips
from causvid.data.video_reader import read_frames
from causvid.models.vae import decode, encode, load_vae, to_uint8, to_unit
from causvid.runtime import device as devices
from causvid.runtime.progress import progress
from causvid.shapes import VideoShape


@torch.no_grad()
def write_reconstructions(
    vae: Path, clips: Path, rows: Sequence[dict[str, Any]], video: VideoShape, *, crf: int, out: Path
) -> dict[str, float]:
    """Reconstruct the clips of ``rows`` into ``out`` and return their mean PSNR in dB, before H.264 (peak 255)."""
    model = load_vae(vae).to(devices.pick())
    written, errors = [], []
    for index, row in enumerate(progress(rows, total=len(rows), what="reconstruct")):
        original = read_frames(clips / row["path"])
        clip = to_unit(torch.from_numpy(original))[None].to(model.device)
        frames = to_uint8(decode(model, encode(model, clip)))
        errors.append(np.square(frames[0].cpu().numpy().astype(np.float64) - original).mean())
        written += write_clips(out, [row["caption"]], frames, video, crf, first=index)
    manifest.write_rows(out / manifest.NAME, written)
    psnr = 10 * np.log10(255.0**2 / np.maximum(errors, 1e-10))
    return {"psnr_db": float(psnr.mean()), "held_out_clips": len(rows)}
