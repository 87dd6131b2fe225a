"""Build the two score models of DMD. The teacher is frozen; the critic learns the distribution of the student."""

from __future__ import annotations

from typing import Protocol

import torch

from causvid.diffusion.velocity import Velocity, guided
from causvid.methods.dmd.adapter import with_adapter, without_adapter
from causvid.methods.dmd.samples import DmdRun
from causvid.methods.shared.networks import Trainee, load_frozen
from causvid.wan.transformer.wan import load_transformer


class Scores(Protocol):
    """The critic, which is trained, and the score of the frozen teacher."""

    critic: Trainee

    def teacher(self, text: torch.Tensor, negative: torch.Tensor) -> Velocity:
        """Return the teacher's velocity with guidance.

        Args:
            text: Prompt embeddings [B, L, D].
            negative: Embedding of the negative prompt [1, L, D].
        """
        ...


def scores_of(run: DmdRun) -> Scores:
    """Build the critic and the teacher. ``train_dmd.critic_lora_rank`` selects the kind of critic."""
    rank = run.config.critic_lora_rank
    return OwnCritic(run) if rank is None else AdaptedTeacher(run, rank)


class OwnCritic:
    """A critic with separate weights, which are initialised with the weights of the teacher."""

    def __init__(self, run: DmdRun) -> None:
        folder, self.scale = run.inputs["teacher"], run.config.guidance_scale
        self.critic = Trainee(load_transformer(folder), run, run.config.critic_optimizer)
        self.model = load_frozen(folder, run)

    def teacher(self, text: torch.Tensor, negative: torch.Tensor) -> Velocity:
        """Return the velocity of the frozen teacher with guidance."""
        return guided(self.model, text, negative, self.scale)


class AdaptedTeacher:
    """A critic that shares the frozen weights of the teacher and adds a LoRA adapter, which is trained."""

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
