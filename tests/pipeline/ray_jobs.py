"""Jobs for the tests of Ray: what a worker can suffer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from causvid.data.captions import read_captions
from causvid.preparation.latents import LatentConfig, LatentEncoder, extract_latents
from causvid.preparation.ode_pairs import OdePairConfig, OdePairSolver, generate_ode_pairs
from causvid.runtime.device import Precision
from causvid.runtime.parallel import BadItem, Compute
from causvid.shapes import LatentShape
from tests.conftest import SCHEDULE, VIDEO


@dataclass(frozen=True)
class Trouble:
    """Squares numbers, notes tries. 13 kills its worker, 7 the first time; -1 cannot be read, -13 kills its reader."""

    folder: Path

    def load(self, item: int) -> int:
        if item == -1:
            raise BadItem("unreadable", "it is -1")
        if item == -13:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    def worker(self) -> Trouble:
        return self

    def __call__(self, loaded: Sequence[int]) -> list[int]:
        for item in loaded:
            tries = self.folder / str(item)
            with tries.open("a") as file:
                file.write(f"{os.getpid()}\n")
            if item == 99:
                raise ValueError("99 is a mistake of ours")
            if item == 13 or (item == 7 and len(tries.read_text().splitlines()) == 1):
                os.kill(os.getpid(), signal.SIGKILL)
        return [item * item for item in loaded]


def _compute(workers: int) -> Compute:
    return Compute(
        workers=workers, gpus_per_worker=0, gradient_checkpointing=False, shard_weights=False, save_in_background=False
    )


def run_latents(world: Path, clips: Path, out: Path, *, workers: int) -> None:
    """Encode the clips with the toy world's VAE, two at once."""
    job = LatentEncoder(clips=clips, vae=world / "vae", out=out, video=VIDEO, precision=Precision.FLOAT32)
    extract_latents(job, LatentConfig(batch_size=2), _compute(workers))


def run_pairs(world: Path, clips: Path, out: Path, *, workers: int) -> None:
    """Solve 48 pairs with its teacher, two at once."""
    job = OdePairSolver(
        teacher=world / "teacher", prompts=world / "prompts", out=out, schedule=SCHEDULE,
        latent=LatentShape(channels=4, frames=4, height=4, width=4), guidance_scale=3.0, precision=Precision.FLOAT32, seed=0,
    )  # fmt: skip
    generate_ode_pairs(
        job, read_captions(clips), OdePairConfig(pairs=48, batch_size=2, guidance_scale=3.0), _compute(workers)
    )


if __name__ == "__main__":
    what, *folders = sys.argv[1:]
    {"latents": run_latents, "pairs": run_pairs}[what](*map(Path, folders), workers=2)
