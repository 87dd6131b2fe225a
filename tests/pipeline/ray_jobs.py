"""Define work for the tests of Ray: items that kill workers, attempts to connect, and stages to interrupt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from causvid.compute.parallel import BadItem, Compute, map_groups
from causvid.compute.precision import Precision
from causvid.data.captions import read_captions
from causvid.preparation.latents.config import LatentConfig
from causvid.preparation.latents.encoding import LatentEncoder, extract_latents
from causvid.preparation.ode_pairs.config import OdePairConfig
from causvid.preparation.ode_pairs.solving import OdePairSolver, generate_ode_pairs
from causvid.runtime.shapes import LatentShape
from tests.conftest import ONE_WORKER, SCHEDULE, VIDEO


@dataclass(frozen=True)
class Trouble:
    """Square numbers and record the attempts.

    Item 13 kills its worker. Item 7 kills its worker at the first attempt. Item -1 cannot be read. Item -13 kills its
    reader.
    """

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
                raise ValueError("99 is an error in our code")
            if item == 13 or (item == 7 and len(tries.read_text().splitlines()) == 1):
                os.kill(os.getpid(), signal.SIGKILL)
        return [item * item for item in loaded]


@dataclass(frozen=True)
class Doors:
    """Report which processes can connect to the Ray session that runs this work."""

    def load(self, item: str) -> str:
        return item

    def worker(self) -> Doors:
        return self

    def __call__(self, loaded: Sequence[str]) -> list[tuple[str, Any]]:
        return [(item, self.listening() if item == "listening" else self.answer(item)) for item in loaded]

    def listening(self) -> list[str]:
        """Return the addresses on which the driver and its descendants listen."""
        raylet = psutil.Process().parent()
        assert raylet is not None
        driver = raylet.parent()
        assert driver is not None
        family = [driver, *driver.children(recursive=True)]
        return sorted({c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN})

    def answer(self, token: str) -> str:
        """Return the output of a process that connects with ``token`` and without a token file.

        The value "none" disables authentication, and "" means the token of the session.
        """
        # imported here, because ray reads the environment at import, and the driver must set the environment before
        import ray

        address = ray.get_runtime_context().gcs_address
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        # Without the second variable, ray would look for another address than loopback.
        env |= {"HOME": "/nowhere", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        mode = {"RAY_AUTH_MODE": "disabled"} if token == "none" else {"RAY_AUTH_MODE": "token"}
        env |= mode | {"RAY_AUTH_TOKEN": token or os.environ["RAY_AUTH_TOKEN"]}
        program = f"import ray; ray.init({address!r}, logging_level='error'); print('in:', len(ray.nodes()))"
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr[-1000:]


def _compute(workers: int) -> Compute:
    return replace(ONE_WORKER, workers=workers)


def run_latents(world: Path, clips: Path, out: Path, *, workers: int) -> None:
    """Encode the clips with the VAE of the toy world, in batches of two."""
    encoder = LatentEncoder(clips=clips, vae=world / "vae", out=out, video=VIDEO, precision=Precision.FLOAT32)
    extract_latents(encoder, LatentConfig(batch_size=2), _compute(workers))


def run_pairs(world: Path, clips: Path, out: Path, *, workers: int) -> None:
    """Generate 48 ODE pairs with the teacher of the toy world, in batches of two."""
    solver = OdePairSolver(
        teacher=world / "teacher", prompts=world / "prompts", out=out, schedule=SCHEDULE,
        latent=LatentShape(channels=4, frames=4, height=4, width=4), guidance_scale=3.0, precision=Precision.FLOAT32, seed=0,
    )  # fmt: skip
    generate_ode_pairs(
        solver, read_captions(clips), OdePairConfig(pairs=48, batch_size=2, guidance_scale=3.0), _compute(workers)
    )


def ask_at_doors() -> None:
    """Print the answers of ``Doors`` as JSON."""
    questions = ["listening", "none", "wrong", ""]
    done = map_groups(Doors(), [[question] for question in questions], _compute(2))
    print(json.dumps(dict(answer for handled in done for answer in handled.results)))


if __name__ == "__main__":
    what, *folders = sys.argv[1:]
    if what == "doors":
        sys.exit(ask_at_doors())
    {"latents": run_latents, "pairs": run_pairs}[what](*map(Path, folders), workers=2)
