"""Compare settings for waiting OpenMP threads by the speed of training and sampling, on an idle and on a busy machine.

``python -m benchmarks.waiting [PROFILE.yaml] [ROUNDS]`` prints one line per setting: steps per second, and the ratio of
this rate to the rate with OpenMP's default in the same round. Every round measures all settings, so that a change of
the machine's speed affects all settings.

A busy machine runs one other process that computes all the time. The output marks the setting that
``causvid.harness.environment`` uses. The number of threads is torch's default. Results depend on the number of threads,
but not on the way in which threads wait.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from causvid.harness.environment import SPINS

SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's default": {},
    "OMP_WAIT_POLICY=ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"GOMP_SPINCOUNT={spins}": {"GOMP_SPINCOUNT": spins} for spins in ("1000", "10000", "100000")},
}
SECONDS = 3.0
WORK = """
import json, sys, time
import torch
from causvid import params
from causvid.wan.formats.configs import latent_shape
from causvid.wan.transformer.wan import build_transformer
from causvid.runtime.shapes import VideoShape
values = params.read(__import__("pathlib").Path(sys.argv[1]))
model, video = values["model"], VideoShape(**values["video"])
latent = latent_shape(model["vae"], video)
teacher = build_transformer(model["transformer"], seed=0)
batch = values["train_dmd"]["batch_size"]
noise = torch.randn(batch, *latent.sizes)
text = torch.randn(batch, model["text_tokens"], model["transformer"]["text_dim"])
def train():
    teacher(noise, timestep=torch.full((batch,), 500), encoder_hidden_states=text).sample.square().mean().backward()
@torch.no_grad()
def sample():
    teacher(noise[:1], timestep=torch.full((1,), 500), encoder_hidden_states=text[:1])
found = {}
for work in (train, sample):
    for _ in range(3):
        work()
    begun, steps = time.monotonic(), 0
    while time.monotonic() - begun < float(sys.argv[2]):
        work()
        steps += 1
    found[work.__name__] = steps / (time.monotonic() - begun)
print(json.dumps(found))
"""


def steps_per_second(profile: str, setting: Mapping[str, str]) -> dict[str, float]:
    """Measure one setting in a new process, because OpenMP reads the setting during the import of torch.

    Args:
        profile: The params file whose transformer does the work.
        setting: Environment variables.

    Returns:
        Training steps per second, with ``train_dmd.batch_size`` clips, and forward passes per second, with one clip.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", WORK, profile, str(SECONDS)], env=clean | setting, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextmanager
def other_process(wanted: bool) -> Iterator[None]:
    """If ``wanted``, run a process that keeps one core busy until the end of the ``with`` block."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if child is not None:
            child.kill()
            child.wait()


def main(profile: str = "profiles/laptop.yaml", rounds: str = "5") -> None:
    """Measure all settings on an idle and on a busy machine, and print a table for each of the two."""
    for busy in (False, True):
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        with other_process(busy):
            for _ in range(int(rounds)):
                for name, setting in SETTINGS.items():
                    rates[name].append(steps_per_second(profile, setting))
                time.sleep(1)
        print("busy machine" if busy else "idle machine", flush=True)
        base = rates[next(iter(SETTINGS))]
        for name, found in rates.items():
            mark = " (ours)" if SETTINGS[name] == {"GOMP_SPINCOUNT": SPINS} else ""
            cells = []
            for work in ("train", "sample"):
                ratios = sorted(one[work] / peer[work] for one, peer in zip(found, base, strict=True))
                rate = statistics.median(one[work] for one in found)
                middle = statistics.median(ratios)
                cells.append(
                    f"{work} {rate:7.2f}/s, {middle:.2f} times the default ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                )
            print(f"  {name + mark:30s} {'; '.join(cells)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
