"""ODE pairs have the states of a directly solved ODE, and the noise of a pair depends on its number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causvid.compute.precision import Precision
from causvid.data.captions import read_captions
from causvid.data.pack import pack
from causvid.data.shards import read_shard, shard_path
from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos.manifest import read_manifest
from causvid.diffusion.guidance import guide
from causvid.diffusion.schedule import ScheduleConfig
from causvid.preparation.ode_pairs.config import OdePairConfig
from causvid.preparation.ode_pairs.solving import OdePairSolver, generate_ode_pairs, pair_name
from causvid.runtime.seeding import normal
from causvid.runtime.shapes import LatentShape
from causvid.wan.transformer.wan import load_transformer
from tests.conftest import ONE_WORKER

HERE = ONE_WORKER
# the number of pairs is the number of captions plus two
CONFIG = OdePairConfig(pairs=10, batch_size=4, guidance_scale=3.0)
SIZE = LatentShape(channels=4, frames=4, height=4, width=4)


@pytest.fixture
def job(world: Path, schedule: ScheduleConfig, tmp_path: Path) -> OdePairSolver:
    return OdePairSolver(
        teacher=world / "teacher", prompts=world / "prompts", out=tmp_path / "out", schedule=schedule, latent=SIZE,
        guidance_scale=CONFIG.guidance_scale, precision=Precision.FLOAT32, seed=0,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
def test_a_pair_is_a_guided_euler_solve(job: OdePairSolver, world: Path) -> None:
    """The reference has sigmas 1, 0.9, 0.75, 0.5, 0 (shift 3) and the guided velocity uncond + 3 (cond - uncond)."""
    assert generate_ode_pairs(job, read_captions(world / "clips"), CONFIG, HERE) == {
        "pairs": 10,
        "rejected": 0,
        "resumed": 0,
        "states": 4,
    }
    captions = [row["caption"] for row in read_manifest(world / "clips")]
    teacher, prompts = load_transformer(world / "teacher").eval(), PromptStore(world / "prompts")
    for number in (0, 5, 9):
        shard = read_shard(shard_path(job.out, pair_name(number)))
        assert shard.notes["caption"] == captions[number % 8]
        assert json.loads(shard.notes["timesteps"]) == pytest.approx([1000, 750, 500, 0])
        x = normal(SIZE.sizes, 0, "ode_pair", number)[None]
        states = {1.0: x}
        for sigma, after in [(1.0, 0.9), (0.9, 0.75), (0.75, 0.5), (0.5, 0.0)]:
            time = torch.tensor([1000 * sigma])
            uncond, cond = (
                teacher(x, timestep=time, encoder_hidden_states=prompts([text]), return_dict=False)[0]
                for text in ("", captions[number % 8])
            )
            x = x + guide(uncond, cond, 3.0) * (after - sigma)
            states[after] = x
        expected = torch.cat([states[sigma] for sigma in (1.0, 0.75, 0.5, 0.0)])
        torch.testing.assert_close(shard.latents.float(), expected, rtol=2e-3, atol=2e-3)


def test_a_killed_solve_continues_and_gives_the_same_bytes(job: OdePairSolver, world: Path, tmp_path: Path) -> None:
    generate_ode_pairs(job, read_captions(world / "clips"), CONFIG, HERE)
    whole = contents(job.out)
    resumed = replace(job, out=tmp_path / "resumed")
    resumed.out.mkdir()
    for name in sorted(whole)[:5]:
        (resumed.out / name).write_bytes(whole[name])
    assert generate_ode_pairs(resumed, read_captions(world / "clips"), CONFIG, HERE)["resumed"] == 4
    assert contents(resumed.out) == whole


def test_pairs_with_one_caption_differ_and_seeds_differ(job: OdePairSolver, world: Path, tmp_path: Path) -> None:
    generate_ode_pairs(job, read_captions(world / "clips"), CONFIG, HERE)
    first, ninth = (read_shard(shard_path(job.out, pair_name(k))) for k in (0, 8))
    assert first.notes["caption"] == ninth.notes["caption"]
    assert not torch.equal(first.latents, ninth.latents)
    other = replace(job, out=tmp_path / "other", seed=1)
    generate_ode_pairs(other, read_captions(world / "clips"), CONFIG, HERE)
    assert not torch.equal(first.latents, read_shard(shard_path(other.out, pair_name(0))).latents)


def test_packed_pairs_have_the_timesteps_of_their_schedule(
    job: OdePairSolver, world: Path, tmp_path: Path, schedule: ScheduleConfig
) -> None:
    generate_ode_pairs(job, read_captions(world / "clips"), CONFIG, HERE)
    metadata = pack(job.out, tmp_path / "lmdb", per_transaction=4)
    assert metadata["count"] == 10
    assert metadata["shape"] == [4, 4, 4, 4, 4]
    assert metadata["timesteps"] == schedule.stored_timesteps()
