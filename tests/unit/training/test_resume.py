"""A resumed training equals an uninterrupted training bit for bit only if every part of the state is restored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.speed import Counts
from causvid.training import checkpoint
from causvid.training.trainer import CURVE, train

KINDS = ["teacher", "causal_teacher", "ode", "dmd", "vae"]
KINDS_WITH_PARTS = [
    ("teacher", "model"), ("teacher", "average"), ("teacher", "optimizer"),
    ("causal_teacher", "model"), ("causal_teacher", "average"), ("causal_teacher", "optimizer"),
    ("ode", "model"), ("ode", "average"), ("ode", "optimizer"),
    ("dmd", "student_model"), ("dmd", "student_average"), ("dmd", "student_optimizer"),
    ("dmd", "critic_model"), ("dmd", "critic_optimizer"),
    ("dmd_lora_critic", "critic_model"),
    ("vae", "model"), ("vae", "optimizer"),
]  # fmt: skip


class Killed(Exception):
    """Simulates SIGKILL between two steps."""


class Mortal:
    """A step object that raises ``Killed`` before step ``at``.

    The object adds ``shift`` to the number of every step, and does not restore the part ``without`` of the state.
    """

    def __init__(self, step: Any, *, at: int | None = None, without: str | None = None, shift: int = 0) -> None:
        self.step, self.at, self.without, self.shift = step, at, without, shift

    def state(self) -> Mapping[str, checkpoint.Stateful]:
        return {name: part for name, part in self.step.state().items() if name != self.without}

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        if index == self.at:
            raise Killed
        return self.step(index + self.shift)  # type: ignore[no-any-return]

    def counts(self, step: int) -> Counts:
        return self.step.counts(step)  # type: ignore[no-any-return]

    def export(self, folder: Path) -> None:
        self.step.export(folder)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a nested state in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def fingerprint(step: Any) -> dict[str, str]:
    """Return the SHA-256 of each part of the state."""
    return {
        name: hashlib.sha256(
            b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors(part.state_dict()))
        ).hexdigest()
        for name, part in step.state().items()
    }


def trained(run: Any, kind: Any, *, at: int | None = None, without: str | None = None) -> tuple[dict[str, str], str]:
    """Train ``run`` with a new step object, and return the fingerprint and the curve."""
    step = kind.step(run)
    mortal = Mortal(step, at=at, without=without)
    train(mortal, run)
    return fingerprint(step), (run.work / CURVE).read_text()


def killed(run: Any, kind: Any, at: int) -> None:
    with pytest.raises(Killed):
        trained(run, kind, at=at)


@pytest.mark.parametrize("name", [*KINDS, "dmd_sharing_samples", "dmd_lora_critic"])
def test_a_resumed_run_equals_an_uninterrupted_one_and_its_repetition(
    name: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    kind = kinds[name]
    torch.manual_seed(1)
    straight = trained(kind.new_run(tmp_path / "straight"), kind)
    torch.manual_seed(2)
    assert trained(kind.new_run(tmp_path / "again"), kind) == straight
    stopped = kind.new_run(tmp_path / "stopped")
    killed(stopped, kind, at=3)  # the kill is one step after the checkpoint, between two steps that share samples
    torch.manual_seed(3)
    killed(stopped, kind, at=5)
    assert trained(stopped, kind) == straight
    assert straight[1].count("\n") == 1 + 6  # the curve has a header and one row per step


@pytest.mark.parametrize(("name", "part"), KINDS_WITH_PARTS)
def test_a_resumed_run_without_one_part_of_the_state_differs(
    name: str, part: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Negative control: a resume that omits one part of the state changes the result, for every part."""
    kind = kinds[name]
    assert part in kind.step(kind.new_run(tmp_path)).state()
    straight = trained(kind.new_run(tmp_path / "straight"), kind)
    stopped = kind.new_run(tmp_path / "stopped")
    killed(stopped, kind, at=5)
    assert trained(stopped, kind, without=part)[0] != straight[0]


def test_the_list_of_parts_contains_every_part_of_the_state(kinds: dict[str, Any], tmp_path: Path) -> None:
    found = [(name, part) for name in KINDS for part in kinds[name].step(kinds[name].new_run(tmp_path)).state()]
    assert found == [(name, part) for name, part in KINDS_WITH_PARTS if name in KINDS]


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_with_another_step_number_or_seed_differs(
    name: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Negative control for everything that depends on the step number or the seed, and not on the state.

    These quantities are the samples, the noise, the learning rate and the order of the updates.
    """
    kind = kinds[name]
    straight = trained(kind.new_run(tmp_path / "straight"), kind)
    for place, changes, shift in (("step", {}, 1), ("seed", {"seed": 1}, 0)):
        stopped = kind.new_run(tmp_path / place)
        killed(stopped, kind, at=5)
        step = kind.step(replace(stopped, **changes))
        train(Mortal(step, shift=shift), stopped)
        assert fingerprint(step) != straight[0], place


def test_a_run_that_was_killed_after_its_last_step_only_exports(kinds: dict[str, Any], tmp_path: Path) -> None:
    kind, run = kinds["ode"], kinds["ode"].new_run(tmp_path)
    trained(run, kind)
    (tmp_path / CURVE).rename(tmp_path / "before.csv")
    kind.train(run)
    assert (tmp_path / CURVE).read_bytes() == (tmp_path / "before.csv").read_bytes()
    assert (tmp_path / "export" / "config.json").is_file()
