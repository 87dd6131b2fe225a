"""With sharded weights, DMD on two ranks exchanges the number of bytes that the plan computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from causvid.costs import SINGLE, Workers
from causvid.methods.dmd.cost import DmdCost
from tests.conftest import ONE_WORKER
from tests.unit.training.test_two_ranks import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

STEPS = 4


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("dmd", "data"), ("dmd", "rollout"), ("dmd", "truncated_rollout"), ("dmd_sharing_samples", "rollout")],
)
def test_traffic_of_sharded_layers(name: str, inputs: str, kinds: dict[str, Any], tmp_path: Path) -> None:
    """Count the collectives for layers. The other weights remain gathered between passes; at scale, they are few."""
    run = kinds[name].new_run(tmp_path / "run", steps=STEPS, inputs=inputs, critic_only_steps=0)
    one_step = replace(run.record.schedule, denoising_timesteps=(1000.0,))  # with more steps, the exit step is random
    run = replace(run, record=replace(run.record, schedule=one_step), compute=replace(ONE_WORKER, shard_weights=True))

    def work(rank: int) -> None:
        step = kinds[name].step(run)
        layers = step.critic.model.blocks
        # FSDP2 pads the first axis of a weight for equal shards.
        sharded = sum(-(-len(weight) // 2) * weight[0].numel() for weight in layers[0].parameters())
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            for number in range(STEPS):
                step(number)
        exchanges = sum(
            event.count
            for event in seen.key_averages(group_by_input_shape=True)
            if event.key in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_")
            and [sharded] in event.input_shapes[:2]
        )
        cost = DmdCost(clip=step.clip, config=run.config, few_steps=1, causal=True, teacher=step.clip.divided(None))
        workers = Workers(
            count=2, shards=2, micro_batches=1, value_bytes=SINGLE, weights=len(layers), layers=len(layers), kept=0.0
        )
        assert cost.row(workers).network == exchanges * SINGLE / 2

    on_two_ranks(tmp_path / "ranks", work)
