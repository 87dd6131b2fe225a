"""The data stages against the plain way of doing the same, in one run: resampling, LMDB reads, Ray.

``python -m benchmarks.data resample|lmdb|ray``. Each prints one line. The peers, written from descriptions of what they
do: resample: every frame decoded, resized in float64 with an anti-aliasing Gaussian (as skimage.transform.resize does)
in a pool of threads, written with x264. lmdb: a value copied out and made a float32 tensor. ray: a loop over groups.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from causvid.data import manifest
from causvid.data.generated import write_clips
from causvid.data.latent_store import LatentStore, Record, write_store
from causvid.data.resampling import ResampleConfig, resample_folder
from causvid.data.video_writer import write_video
from causvid.preparation.latents import LatentConfig, LatentEncoder, extract_latents
from causvid.runtime.device import Precision
from causvid.runtime.parallel import Compute, cores
from causvid.shapes import VideoShape

WAN = VideoShape(height=480, width=832, frames=81, fps=16)
TOY = VideoShape(height=32, width=32, frames=33, fps=16)


def compute(workers: int) -> Compute:
    """On CPUs."""
    return Compute(
        workers=workers, gpus_per_worker=0, gradient_checkpointing=False, shard_weights=False, save_in_background=False
    )


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def moving(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [F, H, W, 3]: waves that drift, with some noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 12, (height, width), dtype=np.uint8)
    frames = [
        (120 + 90 * np.sin((x + 5 * t) / 37) * np.cos((y - 3 * t) / 29)).astype(np.uint8) + noise for t in range(count)
    ]
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


def resample(folder: Path) -> None:
    """1080p sources of six seconds to 480x832x81."""
    raw = folder / "raw"
    (raw / "videos").mkdir(parents=True)
    rows = []
    for number in range(cores()):
        path = f"videos/{number}.mp4"
        write_video(raw / path, moving(6 * 24, 1080, 1920), fps=24, crf=18)
        rows.append({"id": f"{number}", "path": path, "caption": "waves", "source": path})
    manifest.write_rows(raw / manifest.NAME, rows)
    config = ResampleConfig(aspect="crop", crf=18)

    def theirs(row: dict[str, str]) -> None:
        with av.open(str(raw / row["path"])) as container:
            frames = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
        chosen = [frames[round(k * 24 / WAN.fps)] for k in range(WAN.frames)]
        write_video(folder / f"theirs{row['id']}.mp4", np.stack([_resized(f) for f in chosen]), fps=WAN.fps, crf=18)

    def plain() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(theirs, rows))

    ours = seconds(lambda: resample_folder(raw, folder / "ours", video=WAN, config=config, compute=compute(1)))
    peer = seconds(plain)
    print(
        f"resample {len(rows)} videos on {cores()} CPUs: {ours:.1f} s, float path {peer:.1f} s: {peer / ours:.1f} times"
    )


def _resized(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] at 480 x 832, in float64: Gaussian of (factor - 1) / 2, then bilinear."""
    image = frame.astype(np.float64) / 255
    factors = np.array([image.shape[0] / WAN.height, image.shape[1] / WAN.width, 1.0])
    smooth = ndimage.gaussian_filter(image, np.maximum(0, (factors - 1) / 2), mode="mirror")
    small = ndimage.zoom(smooth, 1 / factors, order=1, mode="mirror", grid_mode=True)
    return (small.clip(0, 1) * 255).astype(np.uint8)


def lmdb_reads(folder: Path) -> None:
    """Random reads of 64 clips of the paper's size, each compared with its sum before."""
    shape = (16, 21, 60, 104)
    generator = torch.Generator().manual_seed(0)
    records = (Record(torch.randn(shape, generator=generator), str(k)) for k in range(64))
    write_store(records, folder / "store", timesteps=None, per_transaction=8)
    order = torch.randperm(64, generator=generator).tolist()
    store = LatentStore(folder / "store")
    first = seconds(lambda: [store.batch([k]) for k in order])
    ours = statistics.median(seconds(lambda: [store.batch([k]) for k in order]) for _ in range(5))
    # LMDB allows one handle of a file in a process.
    (folder / "copy").mkdir()
    (folder / "copy" / "data.mdb").write_bytes((folder / "store" / "data.mdb").read_bytes())
    with lmdb.open(str(folder / "copy"), readonly=True, lock=False) as env, env.begin() as transaction:

        def plain(index: int) -> torch.Tensor:
            value = transaction.get(f"latents_{index}_data".encode())
            return torch.tensor(np.frombuffer(value, np.float16).reshape(21, 16, 60, 104), dtype=torch.float32)

        peer = statistics.median(seconds(lambda: [plain(k) for k in order]) for _ in range(5))
    print(
        f"LMDB, a clip of 4.2 MB: {1e3 * ours / 64:.2f} ms, get and torch.tensor {1e3 * peer / 64:.2f} ms: "
        f"{peer / ours:.1f} times; the first read, with its sum, {1e3 * first / 64:.2f} ms"
    )


def ray(folder: Path) -> None:
    """Latents of toy clips, by the shipped VAE: Ray's workers, and the same function without Ray."""
    count = 1024
    clips = folder / "clips"
    frames = torch.from_numpy(np.stack([moving(TOY.frames, TOY.height, TOY.width)] * 64))
    rows = []
    for first in range(0, count, 64):
        rows += write_clips(clips, ["waves"] * 64, frames, TOY, 18, first=first)
    manifest.write_rows(clips / manifest.NAME, rows)
    vae, marks = Path("data/inputs/toy_wan/vae").resolve(), []
    for name, workers in (("loop", 1), ("ray", cores())):
        job = LatentEncoder(clips=clips, vae=vae, out=folder / name, video=TOY, precision=Precision.FLOAT32)
        started = time.perf_counter()
        extract_latents(job, LatentConfig(batch_size=8), compute(workers))
        whole = time.perf_counter() - started
        made = sorted(path.stat().st_mtime for path in job.out.glob("*.safetensors"))
        # Once started: from the first shard on.
        marks.append((len(made) / (made[-1] - made[0]), whole))
    (loop, _), (spread, whole) = marks
    print(
        f"latents on {cores()} CPUs: Ray {spread:.1f} clips/s once started ({whole:.0f} s in all), "
        f"threads of one process {loop:.1f}: {spread / loop:.2f} of it"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        {"resample": resample, "lmdb": lmdb_reads, "ray": ray}[sys.argv[1]](Path(place))
