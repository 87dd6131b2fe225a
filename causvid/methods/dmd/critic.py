"""The two scores of DMD: the frozen teacher's, and that of the critic, which follows the student's distribution."""

from __future__ import annotations

from typing import Protocol

import torch

from causvid.diffusion.velocity import Velocity, guided
from causvid.methods.dmd.adapter import with_adapter, without_adapter
from causvid.methods.dmd.samples import DmdRun
from causvid.methods.shared.networks import Trainee, load_frozen
from causvid.wan.transformer.wan import load_transformer


class Scores(Protocol):
    """The critic, which is trained, and the teacher's score."""

    critic: Trainee

    def teacher(self, text: torch.Tensor, negative: torch.Tensor) -> Velocity:
        """Return the teacher's velocity with guidance.

        Args:
            text: Prompt embeddings [B, L, D].
            negative: Embedding of the negative prompt [1, L, D].
        """
        ...


def scores_of(run: DmdRun) -> Scores:
    """Return the kind of critic that ``run`` asks for."""
    rank = run.config.critic_lora_rank
    return OwnCritic(run) if rank is None else AdaptedTeacher(run, rank)


class OwnCritic:
    """A critic with separate weights, which are initialised with those of the teacher."""

    def __init__(self, run: DmdRun) -> None:
        folder, self.scale = run.inputs["teacher"], run.config.guidance_scale
        self.critic = Trainee(load_transformer(folder), run, run.config.critic_optimizer)
        self.model = load_frozen(folder, run)

    def teacher(self, text: torch.Tensor, negative: torch.Tensor) -> Velocity:
        """Return the velocity of the frozen teacher with guidance."""
        return guided(self.model, text, negative, self.scale)


class AdaptedTeacher:
    """A critic that is the teacher with a LoRA adapter; the adapter alone is trained."""

    def __init__(self, run: DmdRun, rank: int) -> None:
        adapted = with_adapter(load_transformer(run.inputs["teacher"]), rank, run.seed)
        self.critic = Trainee(adapted, run, run.config.critic_optimizer)
        self.scale = run.config.guidance_scale

    def teacher(self, text: torch.Tensor, negative: torch.Tensor) -> Velocity:
        """Return the velocity of the model without its adapter, with guidance."""
        velocity = guided(self.critic.model, text, negative, self.scale)

        def plain(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            with without_adapter(self.critic.model):
                return velocity(x_t, timestep)

        return plain
