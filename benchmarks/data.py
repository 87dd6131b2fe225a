"""Compare the speed of LMDB reads, or of encoding latents with Ray, with a simple implementation in the same run.

``python -m benchmarks.data lmdb|ray`` prints one line. The simple implementation for ``lmdb`` copies a value and
converts the copy to a float32 tensor, as the reader in the original CausVid code does. The simple implementation for
``ray`` is the same function without Ray.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import torch

from benchmarks.resampling import compute, moving, seconds
from causvid.compute.parallel import cores
from causvid.compute.precision import Precision
from causvid.data.generated import write_clips
from causvid.data.stores.latent_store import LatentStore, Record, write_store
from causvid.data.videos import manifest
from causvid.preparation.latents.config import LatentConfig
from causvid.preparation.latents.encoding import LatentEncoder, extract_latents
from causvid.runtime.shapes import VideoShape

TOY = VideoShape(height=32, width=32, frames=33, fps=16)


def lmdb_reads(folder: Path) -> None:
    """Time random reads of 64 clips of the paper's size. The first read of each clip also compares its checksum."""
    shape = (16, 21, 60, 104)
    generator = torch.Generator().manual_seed(0)
    records = (Record(torch.randn(shape, generator=generator), str(k)) for k in range(64))
    write_store(records, folder / "store", timesteps=None, per_transaction=8)
    order = torch.randperm(64, generator=generator).tolist()
    store = LatentStore(folder / "store")
    first = seconds(lambda: [store.batch([k]) for k in order])
    ours = statistics.median(seconds(lambda: [store.batch([k]) for k in order]) for _ in range(5))
    # A process can open an LMDB file only once, so that the simple implementation reads a copy.
    (folder / "copy").mkdir()
    (folder / "copy" / "data.mdb").write_bytes((folder / "store" / "data.mdb").read_bytes())
    with lmdb.open(str(folder / "copy"), readonly=True, lock=False) as env, env.begin() as transaction:

        def plain(index: int) -> torch.Tensor:
            value = transaction.get(f"latents_{index}_data".encode())
            return torch.tensor(np.frombuffer(value, np.float16).reshape(21, 16, 60, 104), dtype=torch.float32)

        peer = statistics.median(seconds(lambda: [plain(k) for k in order]) for _ in range(5))
    print(
        f"LMDB, a clip of 4.2 MB: {1e3 * ours / 64:.2f} ms, get and torch.tensor {1e3 * peer / 64:.2f} ms: "
        f"{peer / ours:.1f} times; the first read, with its checksum, {1e3 * first / 64:.2f} ms"
    )


def ray(folder: Path) -> None:
    """Time the encoding of toy clips by the shipped VAE, with the workers of Ray and without Ray."""
    count = 1024
    clips = folder / "clips"
    frames = torch.from_numpy(np.stack([moving(TOY.frames, TOY.height, TOY.width)] * 64))
    rows = []
    for first in range(0, count, 64):
        rows += write_clips(clips, ["waves"] * 64, frames, TOY, 18, first=first)
    manifest.write_rows(clips / manifest.NAME, rows)
    vae, marks = Path("data/inputs/toy_wan/vae").resolve(), []
    for name, workers in (("loop", 1), ("ray", cores())):
        encoder = LatentEncoder(clips=clips, vae=vae, out=folder / name, video=TOY, precision=Precision.FLOAT32)
        started = time.perf_counter()
        extract_latents(encoder, LatentConfig(batch_size=8), compute(workers))
        whole = time.perf_counter() - started
        made = sorted(path.stat().st_mtime for path in encoder.out.glob("*.safetensors"))
        # The rate is measured from the first shard on, so that it does not include the start of the workers.
        marks.append((len(made) / (made[-1] - made[0]), whole))
    (loop, _), (spread, whole) = marks
    print(
        f"latents on {cores()} CPUs: Ray {spread:.1f} clips/s once started ({whole:.0f} s in all), "
        f"threads of one process {loop:.1f}: {spread / loop:.2f} of it"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        {"lmdb": lmdb_reads, "ray": ray}[sys.argv[1]](Path(place))
