"""The order of the updates in DMD: the critic learns at every step, the student at some of them (CausVid algorithm 1).

``Turns`` depends on step numbers only, so that training and the planner share it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Which networks are updated at a training step, and which batch of the student's samples they learn from.

    Training steps form cycles of ``ratio`` critic updates and one student update. Without shared samples, the student
    is updated in the first step of a cycle and every update makes its own samples. With shared samples, all updates of
    a cycle learn from one batch, and the student is updated in the last step: after a resume, the unchanged student can
    still make the same batch for the remaining critic updates.

    Attributes:
        ratio: Critic updates per student update.
        critic_only: Steps at the start in which only the critic is updated.
        shared: Whether the updates of a cycle learn from one batch of samples.
    """

    ratio: int
    critic_only: int
    shared: bool

    def updates_student(self, step: int) -> bool:
        """Return whether ``step`` updates the student as well as the critic."""
        after = step - self.critic_only
        return after >= 0 and after % self.ratio == (self.ratio - 1 if self.shared else 0)

    def sampling_step(self, step: int) -> int:
        """Return the step in which the samples for the critic update of ``step`` are made."""
        return max(0, step - (step - self.critic_only) % self.ratio) if self.shared else step

    def needs_gradient(self, sampling_step: int) -> bool:
        """Return whether a student update will use the shared samples of ``sampling_step``."""
        return sampling_step >= self.critic_only

    def student_updates(self, steps: int) -> int:
        """Return the number of student updates in the first ``steps`` training steps."""
        after = max(0, steps - self.critic_only)
        return after // self.ratio if self.shared else -(-after // self.ratio)

    def batches(self, steps: int) -> float:
        """Return the number of batches of samples in the first ``steps`` training steps, on average over cycles."""
        return steps / self.ratio if self.shared else steps + self.student_updates(steps)
