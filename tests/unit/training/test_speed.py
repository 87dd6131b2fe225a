"""FLOPs agree with PyTorch's counter, rates agree with a clock, and x0 statistics are measured per frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from causvid import speed
from causvid.methods.dmd.step import sizes
from causvid.speed import Counts, Speed, clip_of, peak_flops
from causvid.wan.costs import Transformer


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("teacher", {}),
        ("causal_teacher", {}),
        ("ode", {}),
        ("dmd", {}),
        ("dmd", {"guidance_scale": 1.0}),
        ("dmd", {"inputs": "rollout"}),
        ("dmd", {"inputs": "truncated_rollout"}),
        ("dmd_sharing_samples", {"inputs": "rollout"}),
    ],
)
def test_the_flops_of_a_step_equal_the_count_of_pytorch(
    name: str, changes: Mapping[str, Any], kinds: Mapping[str, Any], tmp_path: Path
) -> None:
    """FLOPs are summed over many steps, because exit steps are random.

    AdamW is used, because AdamW has no matrix products, unlike Muon. ``costs`` also counts the gradient with respect to
    the inputs, which training does not compute. In this small model, this gradient is an eighth of the FLOPs.
    """
    run, steps = kinds[name].new_run(tmp_path, **changes), 21
    if hasattr(run.config, "optimizer"):
        run = replace(run, config=replace(run.config, optimizer=replace(run.config.optimizer, kind="adamw")))
    step, counted = kinds[name].step(run), 0
    for index in range(steps):
        with FlopCounterMode(display=False) as counter:
            step(index)
        counted += counter.get_total_flops()
    work = [step.counts(index) for index in range(steps)]
    assert sum(each.flops or 0.0 for each in work) == pytest.approx(counted, rel=0.2)
    assert {each.samples for each in work} == {run.config.batch_size}


def test_rates_are_measured_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 104.0, 105.0, 105.0])
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(speed, "peak_flops", lambda *_: 1e3)
    counting = Speed("float32", 1)
    for _ in range(2):
        counting.add(Counts(4, 40, 400.0))
    first = counting.read()
    assert first.pop("speed/peak_memory_gb") > 0.01
    assert first == {
        "speed/samples_per_second": 2.0,
        "speed/tokens_per_second": 20.0,
        "speed/mfu": 0.2,
        "speed/mfu_peak_tflops": 1e-9,
    }
    counting.add(Counts(3, 0, None))
    second = counting.read()
    assert second.pop("speed/peak_memory_gb") > 0.01
    assert second == {"speed/samples_per_second": 3.0}


def test_peak_flops_are_those_of_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.devices, "describe", lambda device: f"NVIDIA {device.names}")
    gpu = SimpleNamespace(type="cuda", names="H100 80GB HBM3")
    assert peak_flops(gpu, "bfloat16") == 989e12  # type: ignore[arg-type]
    gpu.names = "Unheard Of"
    assert peak_flops(gpu, "bfloat16") is None  # type: ignore[arg-type]
    assert peak_flops(torch.device("cpu"), "float32") == torch.get_num_threads() * 95e9


def test_sizes_are_measured_for_each_latent_frame() -> None:
    """In the test clip, all values of frame 0 are 1, and a quarter of the values of frame 1 are -4."""
    x0 = torch.ones(2, 2, 2, 2, 2)
    x0[:, 0, 1, 0] = -4
    found = {name: value.item() for name, value in sizes(x0).items()}
    assert found == {
        "x0_abs/frame_00": 1.0,
        "x0_abs/frame_01": 1.75,
        "x0_saturated/frame_00": 0.0,
        "x0_saturated/frame_01": 0.25,
    }


def test_the_cost_of_a_clip_equals_that_of_the_plan() -> None:
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
        "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
    }  # fmt: skip
    clip = clip_of(config, (21, 16, 60, 104), 3, 512)
    assert (clip.tokens, clip.layout.blocks) == (32760, 7)
    assert clip.bidirectional == Transformer.of(config).forward(32760, 32760**2, 512)
