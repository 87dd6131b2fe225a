"""Compare the speed of resampling with a simple implementation in the same run: ``python -m benchmarks.resampling``.

The simple implementation follows a description of the original CausVid code. It decodes every frame, resizes frames in
float64 with an anti-aliasing Gaussian (as skimage.transform.resize does) in a pool of threads, and encodes the result
with x264 (as moviepy does).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from causvid import params
from causvid.compute.parallel import Compute, cores
from causvid.data.resampling.clips import resample_folder
from causvid.data.resampling.config import ResampleConfig
from causvid.data.videos import manifest
from causvid.data.videos.video_writer import write_video
from causvid.runtime.shapes import VideoShape

WAN = VideoShape(height=480, width=832, frames=81, fps=16)


def compute(workers: int) -> Compute:
    """Return the params section ``compute`` of the laptop profile, with another number of workers."""
    laptop = params.read(params.PROFILES / "laptop.yaml")["compute"]
    return params.build(Compute, {**laptop, "workers": workers}, name="compute")


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that one call of ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def moving(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a video of drifting waves with some noise, uint8 [F, H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 12, (height, width), dtype=np.uint8)
    frames = [
        (120 + 90 * np.sin((x + 5 * t) / 37) * np.cos((y - 3 * t) / 29)).astype(np.uint8) + noise for t in range(count)
    ]
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


def resample(folder: Path) -> None:
    """Time the resampling of 1080p videos of six seconds to clips of 81 frames of 480x832, and print one line.

    There are four videos per CPU, so that the start of the worker processes adds little.
    """
    raw = folder / "raw"
    (raw / "videos").mkdir(parents=True)
    write_video(folder / "source.mp4", moving(6 * 24, 1080, 1920), fps=24, crf=21)
    rows = []
    for number in range(4 * cores()):
        path = f"videos/{number}.mp4"
        (raw / path).write_bytes((folder / "source.mp4").read_bytes())
        rows.append({"id": f"{number}", "path": path, "caption": "waves", "source": path})
    megabits = (folder / "source.mp4").stat().st_size * 8 / 6 / 1e6
    manifest.write_rows(raw / manifest.NAME, rows)
    config = ResampleConfig(aspect="crop", crf=18, hdr="tone_map", interlaced="deinterlace")

    def theirs(row: dict[str, str]) -> None:
        with av.open(str(raw / row["path"])) as container:
            frames = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
        chosen = [frames[round(k * 24 / WAN.fps)] for k in range(WAN.frames)]
        with av.open(str(folder / f"theirs{row['id']}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=WAN.fps, options={"preset": "medium"})
            stream.height, stream.width, stream.pix_fmt = WAN.height, WAN.width, "yuv420p"
            for frame in chosen:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(_resized(frame), format="rgb24")))
            container.mux(stream.encode())

    def plain() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(theirs, rows))

    ours = seconds(lambda: resample_folder(raw, folder / "ours", video=WAN, config=config, compute=compute(1)))
    peer = seconds(plain)
    print(
        f"resample {len(rows)} videos of {megabits:.0f} Mbit/s on {cores()} CPUs: {ours:.1f} s, "
        f"float path {peer:.1f} s: {peer / ours:.1f} times"
    )


def _resized(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize a frame [H, W, 3] to 480 x 832 in float64: a Gaussian of sigma (factor - 1) / 2, then bilinear."""
    image = frame.astype(np.float64) / 255
    factors = np.array([image.shape[0] / WAN.height, image.shape[1] / WAN.width, 1.0])
    smooth = ndimage.gaussian_filter(image, np.maximum(0, (factors - 1) / 2), mode="mirror")
    small = ndimage.zoom(smooth, 1 / factors, order=1, mode="mirror", grid_mode=True)
    return (small.clip(0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        resample(Path(place))
