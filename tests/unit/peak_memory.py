"""Measure in a separate process how much the peak memory grows with the length of a video.

    python -m tests.unit.peak_memory generate|sample FOLDER OUT

FOLDER holds a toy pipeline in diffusers' layout and, for ``sample``, the prompts in ``FOLDER/prompts``. The command
writes videos of SHORT frames and then of LONG frames (per batch) to OUT, and prints the growth of peak memory in bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from causvid.data.stores.prompt_store import PromptStore
from causvid.generate.videos import generate
from causvid.pipeline import CausVidPipeline
from causvid.preparation.samples.config import SampleConfig
from causvid.preparation.samples.sampling import sample
from causvid.runtime.shapes import VideoShape

CLIP = VideoShape(height=64, width=64, frames=61, fps=8)
SHORT, LONG = 64, 1600
BATCH = 2  # batch size of the stage sample
VIDEO_BYTES = LONG * CLIP.height * CLIP.width * 3  # number of bytes of all LONG frames as uint8
# getrusage is not used, because its maximum starts with the memory of the parent process
STATUS = Path("/proc/self/status")


def growth(kind: str, folder: Path, out: Path) -> int:
    """Measure the growth of the peak memory in a new process, and return the number of bytes."""
    command = [sys.executable, "-m", "tests.unit.peak_memory", kind, str(folder), str(out)]
    # The C library must return large blocks to the system immediately; otherwise, fragmentation would look like growth.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def _peak() -> int:
    return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024


def _maker(kind: str, pipeline: CausVidPipeline, folder: Path) -> Callable[[Path, int], object]:
    """Return a function that writes videos with a given number of frames to a folder."""
    if kind == "generate":
        return lambda out, frames: generate(pipeline, ["x"], out, shape=CLIP, seconds=frames / CLIP.fps, seeds=[0])
    prompts = PromptStore(folder / "prompts")

    def make(out: Path, frames: int) -> None:
        clips = max(2, frames // CLIP.frames // BATCH)  # generate and sample both need at least two windows
        config = SampleConfig(
            videos=BATCH, batch_size=BATCH, guidance_scale=1.0, rollouts=BATCH, rollout_clips=clips, crf=10
        )
        sample(pipeline, prompts, CLIP, config, seed=0, out=out, few_steps=True)

    return make


def _main(kind: str, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    pipeline = CausVidPipeline.from_pretrained(folder)
    make = _maker(kind, pipeline, folder)
    make(out / "short", SHORT)
    before = _peak()
    make(out / "long", LONG)
    print(_peak() - before)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
