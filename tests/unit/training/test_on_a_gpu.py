"""On a GPU, training with every method in bfloat16 agrees with training in float32, and can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from causvid.compute import device as devices
from causvid.compute.precision import Precision
from tests.conftest import ONE_WORKER
from tests.unit.training.conftest import curve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # ignore warnings that torch's compiler causes within torch
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("again", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["teacher", "causal_teacher", "ode", "dmd", "dmd_sharing_samples", "dmd_lora_critic"])
def test_training_in_bfloat16(name: str, again: str, compiled: bool, kinds: dict[str, Any], tmp_path: Path) -> None:
    if devices.pick().type == "cpu":
        pytest.skip("no accelerator")
    curves = []
    for precision, compute in (
        (Precision.FLOAT32, ONE_WORKER),
        (Precision.BFLOAT16, replace(ONE_WORKER, gradient_checkpointing=again, compile=compiled)),
    ):
        run = kinds[name].new_run(tmp_path / precision, steps=4, precision=precision)
        run = replace(run, compute=compute, watch=replace(run.watch, samples_every=2))
        kinds[name].train(run)
        kinds[name].train(replace(run, config=replace(run.config, steps=6)))  # the run resumes from the last checkpoint
        curves.append(curve(run.work))
    assert len(curves[0]) == len(curves[1]) == 6
    for exact, rounded in zip(*curves, strict=True):
        assert rounded.keys() == exact.keys()
        for column in (column for column in exact if column.endswith("loss")):
            assert rounded[column] == pytest.approx(exact[column], rel=0.1)
