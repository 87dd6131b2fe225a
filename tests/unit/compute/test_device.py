"""A machine without a GPU selects the CPU and the requested precision."""

from __future__ import annotations

import pytest
import torch

from causvid.compute import device as devices
from causvid.compute.precision import Precision
from causvid.params import build

CPU = torch.device("cpu")


def test_precision_applies_to_matrix_products_only() -> None:
    x = torch.randn(4, 4)
    with devices.autocast(CPU, Precision.FLOAT32):
        assert (x @ x).dtype == torch.float32
    with devices.autocast(CPU, Precision.BFLOAT16):
        assert (x @ x).dtype == torch.bfloat16
        assert (x + x).dtype == torch.float32
    assert [p.dtype for p in Precision] == [torch.float32, torch.bfloat16]


def test_precision_is_read_from_params_by_name() -> None:
    assert build(Precision, "bfloat16", name="model.precision") is Precision.BFLOAT16
    with pytest.raises(ValueError, match=r"model.precision: .*'float32' or 'bfloat16' \(found 'fp16'\)"):
        build(Precision, "fp16", name="model.precision")


def test_ranks_of_a_node_use_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank, expected in [("0", 0), ("3", 3), ("6", 2)]:
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert devices.pick() == torch.device("cuda", expected)


def test_the_name_of_a_device() -> None:
    assert devices.describe(CPU) == f"CPU, {torch.get_num_threads()} threads"
    devices.synchronize(CPU)
