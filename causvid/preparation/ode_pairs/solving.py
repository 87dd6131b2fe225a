"""Solve the teacher's ODE from noise for many prompts, and store states for training the student (CausVid sec. 4.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from causvid.compute import device as devices
from causvid.compute.parallel import Compute, map_groups
from causvid.compute.precision import Precision
from causvid.data.shards import Shard, finish, shard_path, write_shard
from causvid.data.stores.prompt_store import PromptStore
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import guided
from causvid.harness.progress import progress
from causvid.preparation.ode_pairs.config import OdePairConfig
from causvid.runtime.seeding import normal
from causvid.runtime.shapes import LatentShape
from causvid.sampling.ode_solver import solve_ode
from causvid.wan.transformer.wan import load_transformer


@dataclass(frozen=True, kw_only=True)
class OdePairSolver:
    """Solves groups of pairs. An item is (number of a pair, caption of the pair).

    Attributes:
        teacher: Folder of the teacher.
        prompts: Folder of the prompt embeddings.
        out: Folder of the shards.
        schedule: Number of solver steps, and timesteps of the states to store.
        latent: Shape of a latent clip.
        guidance_scale: Guidance scale w of the teacher.
        precision: Precision of the teacher's matrix products.
        seed: Seed of the noise, which depends on the number of the pair.
    """

    teacher: Path
    prompts: Path
    out: Path
    schedule: ScheduleConfig
    latent: LatentShape
    guidance_scale: float
    precision: Precision
    seed: int

    def load(self, item: tuple[int, str]) -> tuple[int, str]:
        """Return ``item``, because an item needs no file."""
        return item

    def worker(self) -> _Solving:
        """Load the teacher."""
        return _Solving(self)


class _Solving:
    def __init__(self, solver: OdePairSolver) -> None:
        self.solver, self.device = solver, devices.pick()
        self.teacher = load_transformer(solver.teacher).to(self.device).requires_grad_(False).eval()
        self.prompts = PromptStore(solver.prompts)

    @torch.no_grad()
    def __call__(self, group: Sequence[tuple[int, str]]) -> Sequence[None]:
        solver, schedule = self.solver, self.solver.schedule
        text = self.prompts([caption for _, caption in group]).to(self.device)
        negative = self.prompts([self.prompts.negative]).to(self.device)
        noise = torch.stack([normal(solver.latent.sizes, solver.seed, "ode_pair", number) for number, _ in group])
        velocity = guided(self.teacher, text, negative, solver.guidance_scale)
        with devices.autocast(self.device, solver.precision):
            states = solve_ode(
                velocity, noise.to(self.device), schedule.grid.sigmas(schedule.solver_steps), keep=schedule.columns()
            )
        notes = {"timesteps": json.dumps(schedule.stored_timesteps())}
        for (number, caption), trajectory in zip(group, states.cpu(), strict=True):
            write_shard(solver.out, pair_name(number), Shard(trajectory, {**notes, "caption": caption}))
        return ()


def pair_name(number: int) -> str:
    """Return the file name, without suffix, of the shard that stores the ODE pair ``number``."""
    return f"{number:07d}"


def generate_ode_pairs(
    solver: OdePairSolver, captions: Sequence[str], config: OdePairConfig, compute: Compute
) -> dict[str, float]:
    """Solve the pairs that have no shard, and write the index.

    Args:
        solver: The solver, with its folders and settings.
        captions: Captions of the pairs. If there are more pairs than captions, the captions are repeated in order.
        config: Params section ``generate_ode_pairs``.
        compute: Number of workers.

    Returns:
        Numbers of solved pairs, of rejected pairs, of pairs in groups whose shards were already complete, and of states
        per pair.

    Raises:
        ValueError: No pair can be solved. If some pairs can be solved, rejected.jsonl lists the other pairs.
    """
    items = [(number, captions[number % len(captions)]) for number in range(config.pairs)]
    solver.out.mkdir(parents=True, exist_ok=True)
    groups = [items[start : start + config.batch_size] for start in range(0, len(items), config.batch_size)]
    missing = [g for g in groups if not all(shard_path(solver.out, pair_name(number)).is_file() for number, _ in g)]
    rejected: dict[int, dict[str, str]] = {}
    for handled in progress(map_groups(solver, missing, compute), total=len(missing), what="generate_ode_pairs"):
        for (number, _), bad in handled.bad:
            rejected[number] = {"id": pair_name(number), "code": bad.code, "reason": bad.reason}
    kept = [{"id": pair_name(n), "caption": caption} for n, caption in items if n not in rejected]
    if not kept:
        raise ValueError(f"none of the {len(items)} pairs can be solved: {rejected[0]['reason']}")
    finish(solver.out, kept, rejected.values())
    return {
        "pairs": len(kept),
        "rejected": len(rejected),
        "resumed": len(items) - sum(map(len, missing)),
        "states": len(solver.schedule.columns()),
    }
