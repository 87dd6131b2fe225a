"""Define the order of the updates in DMD (CausVid algorithm 1): every step trains the critic, some train the student.

The class ``Turns`` depends on step numbers only, so that training and the planner can both use this class.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The networks that are updated at a training step, and the samples of the student that these updates use.

    Training steps form cycles of ``ratio`` critic updates and one student update. Without shared samples, the student
    is updated in the first step of a cycle, and every update generates new samples. With shared samples, all updates of
    a cycle use one batch, and the student is updated in the last step of the cycle. After a resume within a cycle, the
    student is therefore still unchanged and generates the same batch for the remaining critic updates.

    Attributes:
        ratio: Number of critic updates per student update.
        critic_only: Number of steps at the start in which only the critic is updated.
        shared: Whether the updates of a cycle use one batch of samples.
    """

    ratio: int
    critic_only: int
    shared: bool

    def updates_student(self, step: int) -> bool:
        """Return whether ``step`` updates the student as well as the critic."""
        after = step - self.critic_only
        return after >= 0 and after % self.ratio == (self.ratio - 1 if self.shared else 0)

    def sampling_step(self, step: int) -> int:
        """Return the step that generates the samples for the critic update of ``step``."""
        return max(0, step - (step - self.critic_only) % self.ratio) if self.shared else step

    def needs_gradient(self, sampling_step: int) -> bool:
        """Return whether a student update will use the shared samples that ``sampling_step`` generates."""
        return sampling_step >= self.critic_only

    def student_updates(self, steps: int) -> int:
        """Return the number of student updates in the first ``steps`` training steps."""
        after = max(0, steps - self.critic_only)
        return after // self.ratio if self.shared else -(-after // self.ratio)

    def batches(self, steps: int) -> float:
        """Return the number of generated batches in the first ``steps`` training steps. It may be fractional."""
        return steps / self.ratio if self.shared else steps + self.student_updates(steps)
