"""With sharded weights, DMD on two ranks sends the number of bytes that the plan computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from causvid.compute.parallel import Checkpointing
from causvid.costs import SINGLE, Workers
from causvid.methods.dmd.cost import DmdCost
from tests.conftest import ONE_WORKER
from tests.unit.training.test_two_ranks import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

STEPS = 4
COLLECTIVES = ("all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single")


@pytest.mark.parametrize(
    ("name", "inputs", "again", "micro_batches"),
    [
        ("dmd", "data", "none", 1),
        ("dmd", "rollout", "selective", 2),
        ("dmd", "truncated_rollout", "none", 1),
        ("dmd_sharing_samples", "rollout", "none", 2),
    ],
)
def test_traffic_of_sharded_layers(
    name: str, inputs: str, again: Checkpointing, micro_batches: int, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Count the collectives of the layers only.

    FSDP2 keeps the other weights gathered between passes; they are a small part of a large model.
    """
    run = kinds[name].new_run(tmp_path / "run", steps=STEPS, inputs=inputs, critic_only_steps=0)
    one_step = replace(run.record.schedule, denoising_timesteps=(1000.0,))  # with more steps, the exit step is random
    compute = replace(
        ONE_WORKER, shard_weights=True, gradient_checkpointing=again, gradient_accumulation_steps=micro_batches
    )
    run = replace(run, record=replace(run.record, schedule=one_step), compute=compute)

    def work(rank: int) -> None:
        step = kinds[name].step(run)
        layers = step.critic.model.blocks
        # FSDP2 pads the first axis of a weight, so that all shards have the same size.
        gathered = sum(-(-len(weight) // 2) * 2 * weight[0].numel() for weight in layers[0].parameters())
        sizes: list[int] = []
        for collective in COLLECTIVES:  # their names depend on the version of torch
            if hasattr(dist, collective):
                record(collective, sizes)
        for number in range(STEPS):
            step(number)
        clip = step.clip
        cost = DmdCost(clip=clip, config=run.config, few_steps=1, causal=True, scored=clip.in_blocks_of(None))
        workers = Workers(
            count=2, shards=2, micro_batches=micro_batches, value_bytes=SINGLE, weights=len(layers),
            layers=len(layers), kept=0.0,
        )  # fmt: skip
        assert cost.row(workers).network == sizes.count(gathered) * SINGLE / 2

    on_two_ranks(tmp_path / "ranks", work)


def record(collective: str, sizes: list[int]) -> None:
    """Append the size of the largest tensor of each call of ``collective`` to ``sizes``, in this process."""
    original = getattr(dist, collective)

    def call(*args: Any, **kwargs: Any) -> Any:
        sizes.append(max(value.numel() for value in (*args, *kwargs.values()) if hasattr(value, "numel")))
        return original(*args, **kwargs)

    setattr(dist, collective, call)
