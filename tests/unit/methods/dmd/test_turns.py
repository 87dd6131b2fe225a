"""The step number decides whether student and critic are updated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.methods.dmd.turns import Turns

ANY = st.builds(Turns, ratio=st.integers(1, 7), critic_only=st.integers(0, 9), shared=st.booleans())


@pytest.mark.parametrize(
    ("shared", "student", "sampling"),
    [(False, [2, 5, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]), (True, [4, 7], [0, 0, 2, 2, 2, 5, 5, 5, 8])],
)
def test_student_updates_and_sampling_steps_of_nine_steps(
    shared: bool, student: list[int], sampling: list[int]
) -> None:
    turns = Turns(ratio=3, critic_only=2, shared=shared)
    assert [step for step in range(9) if turns.updates_student(step)] == student
    assert [turns.sampling_step(step) for step in range(9)] == sampling


@given(turns=ANY, steps=st.integers(0, 60))
def test_student_updates_counts_the_steps_that_update_the_student(turns: Turns, steps: int) -> None:
    assert turns.student_updates(steps) == sum(turns.updates_student(step) for step in range(steps))


@given(turns=ANY, step=st.integers(0, 60))
def test_samples_come_from_a_step_of_the_same_cycle(turns: Turns, step: int) -> None:
    """No update of the student occurs between the generation of samples and their use.

    Samples for an update of the student have a gradient.
    """
    made = turns.sampling_step(step)
    assert 0 <= made <= step
    assert turns.sampling_step(made) == made
    assert not (turns.shared and any(turns.updates_student(between) for between in range(made, step)))
    if turns.updates_student(step):
        assert turns.needs_gradient(made)


@given(turns=ANY, cycles=st.integers(0, 9))
def test_batches_counts_the_batches_of_complete_cycles(turns: Turns, cycles: int) -> None:
    steps = turns.ratio * cycles
    complete = Turns(ratio=turns.ratio, critic_only=0, shared=turns.shared)
    made = {complete.sampling_step(step) for step in range(steps)}
    expected = len(made) if complete.shared else len(made) + complete.student_updates(steps)
    assert complete.batches(steps) == expected
