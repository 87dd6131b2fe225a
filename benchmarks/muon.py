"""Compare a step of ``causvid.training.muon`` with a step of ``torch.optim.Muon``, on the matrices of one transformer.

``python -m benchmarks.muon [CONFIG.json]`` prints the seconds of the two steps, measured in the same run, and their
ratio. The default of CONFIG.json is the config of the toy teacher in data/inputs/toy_wan.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from causvid.compute import device as devices
from causvid.training.muon import Muon
from causvid.wan.transformer.wan import Transformer, build_transformer, is_block_matrix

REPEATS = 7


def seconds(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    """Return the median seconds of ``REPEATS`` steps, after one step that is not counted."""
    taken = []
    for _ in range(REPEATS + 1):
        devices.synchronize(device)
        started = time.perf_counter()
        optimizer.step()
        devices.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def main(config: Path) -> None:
    """Measure a step of each optimizer, and print one line."""
    device = devices.pick()
    model = build_transformer(dict(Transformer.load_config(config.parent)), seed=0).to(device)
    matrices = [p for name, p in model.named_parameters() if is_block_matrix(name, p)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    ours = seconds(Muon(matrices, lr=1e-3, weight_decay=0.0, momentum=0.95), device)
    theirs = seconds(torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), device)
    print(
        f"{len(matrices)} matrices on {devices.describe(device)}, kernels {torch.backends.cpu.get_cpu_capability()}: "
        f"ours (float32) {ours:.3f} s, torch.optim.Muon (bfloat16) {theirs:.3f} s, {theirs / ours:.1f} times"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/inputs/toy_wan/transformer/config.json"))
