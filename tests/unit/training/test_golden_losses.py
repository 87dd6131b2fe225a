"""The first 20 losses of every method equal the losses recorded in golden_losses.json.

A mathematical change of the code changes the losses by several percent. Another library version or another processor
changes the losses by rounding errors only. After an intended change, explain the change in the commit message, and
record the losses again with ``CAUSVID_RECORD=1 python -m pytest tests/unit/training/test_golden_losses.py``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from causvid.training.trainer import CURVE

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
SAME, OTHER = 1e-5, 5e-3  # relative tolerances in the recorded environment and in another one


def processor() -> str:
    """Return the name of the CPU and a hash of its instruction sets; an empty string if Linux does not list them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{told.get('model name', '')} {hashlib.sha256(told.get('flags', '').encode()).hexdigest()[:12]}".strip()


# The environment: everything that may change the last bits of the losses.
FINGERPRINT = {
    "torch": torch.__version__.split("+")[0],
    "diffusers": diffusers.__version__,
    "kernels": torch.backends.cpu.get_cpu_capability(),
    "processor": processor(),
}


def losses(kind: Any, work: Path) -> dict[str, list[float]]:
    """Train for ``STEPS`` steps, and return the losses of the training curve."""
    kind.train(kind.new_run(work, steps=STEPS, checkpoint_every=STEPS))
    with (work / CURVE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if name.endswith("loss")}


@pytest.mark.parametrize("name", ["vae", "teacher", "causal_teacher", "ode", "dmd"])
def test_the_first_losses_equal_the_recorded_losses(name: str, kinds: dict[str, Any], tmp_path: Path) -> None:
    found = losses(kinds[name], tmp_path)
    assert all(len(set(values)) > 1 for values in found.values())
    if "CAUSVID_RECORD" in os.environ:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
        golden[name] = {"environment": FINGERPRINT, "losses": found}
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())[name]
    tolerance = SAME if golden["environment"] == FINGERPRINT else OTHER
    assert found.keys() == golden["losses"].keys()
    for column, values in golden["losses"].items():
        assert found[column] == pytest.approx(values, rel=tolerance), f"{name}: {column}, {golden['environment']}"
