"""Training on two ranks has the same losses and weights as training in one process, up to rounding."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch import nn

from causvid.compute.parallel import Checkpointing
from causvid.compute.precision import Precision
from causvid.methods.teacher.step import TeacherStep
from causvid.training import distributed
from causvid.training.trainer import train
from tests.unit.training.conftest import assert_same_losses, curve, laptop_optimizers, optimizer

# Python 3.12 and later warn if a process with threads forks. The child processes of this file are safe: they only
# compute, and then exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def on_two_ranks(folder: Path, work: Callable[[int], None]) -> None:
    """Call ``work(rank)`` in two processes of one process group.

    An error in a process fails the test with its traceback.
    """
    folder.mkdir()
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
                meeting = f"file://{folder}/meeting"
                dist.init_process_group(
                    "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60)
                )
                work(rank)
                dist.destroy_process_group()
                code = 0
            except BaseException:
                (folder / f"error-{rank}").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = "\n".join(path.read_text() for path in sorted(folder.glob("error-*")))
    assert codes == [0, 0], said


def test_ranks_share_a_batch_and_average_means_and_gradients(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (rank, 2, rank == 0)
        assert list(distributed.share_of(6)) == [[0, 1, 2], [3, 4, 5]][rank]
        with pytest.raises(ValueError, match="the batch of 5 does not divide over 2 workers"):
            distributed.share_of(5)
        assert distributed.mean({"a": torch.tensor(1.0 + rank), "b": torch.tensor(-float(rank))}) == {
            "a": 1.5,
            "b": -0.5,
        }
        module = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            module.weight.fill_(rank + 1.0)
        assert distributed.replicate(module) is module
        with torch.no_grad():
            module(torch.ones(1, 2))  # this additional forward pass without gradients has no effect
        assert module.weight.tolist() == [[1.0, 1.0]]  # all ranks have the weights of rank 0
        module(torch.full((1, 2), rank + 1.0)).sum().backward()
        assert module.weight.grad is not None
        assert module.weight.grad.tolist() == [[1.5, 1.5]]
        assert list(module.state_dict()) == ["weight"]
        distributed.barrier()

    on_two_ranks(tmp_path / "ranks", work)


def test_a_single_process_shares_nothing() -> None:
    module = nn.Linear(2, 1)
    assert distributed.replicate(module) is module
    assert list(distributed.share_of(3)) == [0, 1, 2]
    assert distributed.mean({"a": torch.tensor(2.0)}) == {"a": 2.0}
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    distributed.barrier()


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("teacher", None),
        ("causal_teacher", None),
        ("ode", None),
        ("dmd", "data"),
        ("dmd", "rollout"),
        ("dmd", "truncated_rollout"),
        ("dmd_sharing_samples", "data"),
        ("dmd_sharing_samples", "rollout"),
        ("dmd_lora_critic", "data"),
        ("dmd_lora_critic_asked_second", "data"),
        ("vae", None),
    ],
)
@pytest.mark.parametrize(
    ("shard_weights", "again"),
    [(False, "none"), (True, "selective"), (True, "none")],
    ids=["replicated", "sharded", "sharded_without_checkpointing"],
)
def test_two_ranks_train_like_one_process(
    name: str, inputs: str | None, shard_weights: bool, again: Checkpointing, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Test every method; the VAE trains on images, is resumed, and trains on clips.

    All methods except DMD use AdamW in this test, because AdamW does not amplify rounding errors. A rollout has several
    forward passes with gradients before one backward pass. With shared samples, the critic is updated between the
    rollout and this backward pass. Each rank processes its two samples as two micro-batches, and gradients are averaged
    after the second micro-batch.
    """
    adamw = optimizer(learning_rate=1e-3, decay="constant")
    changes: dict[str, Any] = {"inputs": inputs} if inputs else {"optimizer": adamw}
    if name == "vae":
        changes |= {"image_steps": 2}
    alone, together = (kinds[name].new_run(tmp_path / place, steps=6, **changes) for place in ("alone", "together"))
    if name != "vae":
        together = replace(
            together,
            compute=replace(
                together.compute,
                shard_weights=shard_weights,
                gradient_checkpointing=again,
                gradient_accumulation_steps=2,
            ),
        )
    kinds[name].train(alone)
    on_two_ranks(tmp_path / "ranks", lambda _: kinds[name].train(together))
    ours, theirs = curve(alone.work), curve(together.work)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=1e-6)
    weights, others = (
        load_file(run.work / "export" / "diffusion_pytorch_model.safetensors") for run in (alone, together)
    )
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=1e-3, atol=1e-3)
    assert sorted(p.name for p in (together.work / "checkpoints").iterdir()) == ["step-0000004", "step-0000006"]


@pytest.mark.parametrize("shard_weights", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_number_of_workers_may_change_at_a_resume(
    shard_weights: bool, kind: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Train on two ranks to step 2, on one rank to step 4, and on two ranks to the end.

    Losses and weights equal the losses and weights of a training in one process.
    """
    changes = {"optimizer": optimizer(kind, learning_rate=1e-3, decay="constant"), "steps": 6}
    alone, moved = (kinds["teacher"].new_run(tmp_path / place, **changes) for place in ("alone", "moved"))
    moved = replace(moved, compute=replace(moved.compute, shard_weights=shard_weights))
    kinds["teacher"].train(alone)

    def until(steps: int) -> None:
        train(TeacherStep(moved), replace(moved, config=replace(moved.config, steps=steps, checkpoint_every=2)))

    on_two_ranks(tmp_path / "first", lambda _: until(2))
    until(4)
    on_two_ranks(tmp_path / "last", lambda _: until(6))
    ours, theirs = curve(alone.work), curve(moved.work)
    assert [row["step"] for row in theirs] == [0, 1, 2, 3, 4, 5]
    for one, two in zip(ours, theirs, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    weights, others = (load_file(run.work / "export" / "diffusion_pytorch_model.safetensors") for run in (alone, moved))
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=1e-3, atol=1e-4)


def test_sharded_tensors_are_gathered_and_distributed(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        module = nn.Sequential(nn.Linear(3, 5))
        expected = {
            name: torch.arange(value.numel(), dtype=torch.float32).view_as(value)
            for name, value in module.state_dict().items()
        }
        module.load_state_dict(expected)
        distributed.shard(module, nn.ModuleList(module), torch.float32)
        held = module.state_dict()
        assert [value.to_local().shape[0] for value in held.values()] == [[3, 3], [2, 2]][rank]
        found = distributed.whole({"net": [held]})["net"][0]
        if rank == 0:
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        else:
            assert set(found.values()) == {None}
        for name, value in expected.items():
            part = distributed.part_of(value, held[name])
            assert torch.equal(part.to_local(), held[name].to_local())
            assert distributed.part_of(value, value) is value
        assert distributed.from_main(f"rank {rank}") == "rank 0"

    on_two_ranks(tmp_path / "ranks", work)


@pytest.mark.parametrize("shard_weights", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("name", ["teacher", "ode", "dmd"])
def test_fifty_steps_with_the_learning_rates_of_the_profile(
    name: str, shard_weights: bool, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """All rows of the training curves agree. After fifty steps the parameters differ much from their initial values."""
    changes = laptop_optimizers(name)
    alone, together = (kinds[name].new_run(tmp_path / place, steps=50, **changes) for place in ("alone", "together"))
    together = replace(together, compute=replace(together.compute, shard_weights=shard_weights))
    kinds[name].train(alone)
    on_two_ranks(tmp_path / "ranks", lambda _: kinds[name].train(together))
    assert_same_losses(alone.work, together.work, steps=50)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("teacher", None),
        ("ode", None),
        ("dmd", "data"),
        ("dmd", "rollout"),
        ("dmd_lora_critic", "data"),
        ("dmd_lora_critic_asked_second", "data"),
    ],
)
def test_sharded_training_in_bfloat16(name: str, inputs: str | None, kinds: dict[str, Any], tmp_path: Path) -> None:
    """Sharded blocks are gathered and computed in bfloat16, and stored in float32.

    Losses agree up to bfloat16 rounding.
    """
    adamw = optimizer(learning_rate=1e-3, decay="constant")
    changes = {"inputs": inputs} if inputs else {"optimizer": adamw}
    exact = kinds[name].new_run(tmp_path / "exact", steps=4, **changes)
    rounded = kinds[name].new_run(tmp_path / "rounded", steps=4, precision=Precision.BFLOAT16, **changes)
    rounded = replace(rounded, compute=replace(rounded.compute, shard_weights=True))
    kinds[name].train(exact)
    on_two_ranks(tmp_path / "ranks", lambda _: kinds[name].train(rounded))
    ours, theirs = curve(exact.work), curve(rounded.work)
    for one, two in zip(ours, theirs, strict=True):
        losses = {column: value for column, value in one.items() if column.endswith("loss")}
        assert {column: two[column] for column in losses} == pytest.approx(losses, rel=0.05)
    assert theirs != ours
    weights = load_file(rounded.work / "export" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
