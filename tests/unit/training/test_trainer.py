"""The training loop logs each step, writes checkpoints, and stops at a value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from causvid.harness.tracking import Watch
from causvid.speed import Counts
from causvid.training import checkpoint, trainer
from causvid.training.trainer import CURVE, EXPORT, read_last, train, write_curve

COMPUTE = SimpleNamespace(save_in_background=False)
WATCH = Watch(samples_every=0, samples=1, keep_checkpoints_every=None)


class Counter:
    """A step object whose state is a single number. Each step returns ``values(step)``."""

    def __init__(self, values: Any) -> None:
        self.values, self.module, self.seen = values, torch.nn.Linear(1, 1, bias=False), list[int]()

    def state(self) -> Mapping[str, checkpoint.Stateful]:
        return {"module": self.module}

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        self.seen.append(step)
        with torch.no_grad():
            self.module.weight.fill_(step)
        return {name: torch.tensor(value) for name, value in self.values(step).items()}

    def counts(self, step: int) -> Counts:
        return Counts(2, 3, 5e6)

    def export(self, folder: Path) -> None:
        torch.save(self.module.state_dict(), folder)


class Log:
    """A tracker that records metrics."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.more: list[dict[str, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.rows.append((step, {name: value for name, value in metrics.items() if "/" not in name}))
        self.more.append({name: value for name, value in metrics.items() if "/" in name})


def new_run(work: Path, log: Log, steps: int, every: int = 100, watch: Watch = WATCH) -> Any:
    config = SimpleNamespace(steps=steps, checkpoint_every=every)
    return SimpleNamespace(
        config=config, precision="float32", work=work, tracker=log, made_from={}, watch=watch, compute=COMPUTE
    )


def trained(work: Path, step: Counter, steps: int, every: int = 100) -> Log:
    log = Log()
    train(step, new_run(work, log, steps, every))
    return log


def test_every_step_is_done_once_and_logged(tmp_path: Path) -> None:
    counter = Counter(lambda step: {"loss": step / 2})
    log = trained(tmp_path, counter, 5)
    assert counter.seen == [0, 1, 2, 3, 4]
    assert log.rows == [(k, {"loss": k / 2}) for k in range(5)]
    assert (tmp_path / CURVE).read_text() == "step,loss\n0,0.0\n1,0.5\n2,1.0\n3,1.5\n4,2.0\n"
    assert read_last(tmp_path / CURVE) == {"loss": 2.0}
    assert torch.load(tmp_path / EXPORT) == {"weight": torch.tensor([[4.0]])}


def test_a_long_run_logs_about_a_hundred_rows_including_the_last_step(tmp_path: Path) -> None:
    log = trained(tmp_path, Counter(lambda step: {"loss": 1.0}), 1001)
    assert [step for step, _ in log.rows] == [*range(0, 1001, 10)]
    log = trained(tmp_path / "b", Counter(lambda step: {"loss": 1.0}), 998)
    assert log.rows[-1][0] == 997


def test_a_value_that_only_some_steps_return_is_logged(tmp_path: Path) -> None:
    """The student is updated in steps 1, 6, 11, ….

    The logged steps are 0, 5, 10, …, so no logged step has an update.
    """
    counter = Counter(lambda step: {"critic": 1.0} | ({"student": float(step)} if step % 5 == 1 else {}))
    trained(tmp_path, counter, 500)
    rows = (tmp_path / CURVE).read_text().splitlines()
    column = rows[0].split(",").index("student") if "student" in rows[0] else -1
    assert column > 0, "the student's values were never logged"
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) >= 90


@pytest.mark.parametrize("killed_at", [4, 33, 299])
def test_a_resumed_run_has_the_same_curve_for_every_step_of_the_kill(tmp_path: Path, killed_at: int) -> None:
    """A row of the curve contains values of earlier steps.

    A checkpoint may be written between a step and the row with the values of this step.
    """

    def values(step: int) -> dict[str, float]:
        return {"critic": 1.0} | ({"student": float(step)} if step % 5 == 1 else {})

    def mortal(step: int) -> dict[str, float]:
        if step == killed_at:
            raise KeyboardInterrupt
        return values(step)

    trained(tmp_path / "straight", Counter(values), 300, every=32)  # logs every third step
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", Counter(mortal), 300, every=32)
    trained(tmp_path / "killed", Counter(values), 300, every=32)
    assert (tmp_path / "killed" / CURVE).read_text() == (tmp_path / "straight" / CURVE).read_text()


def test_checkpoints_are_written_at_regular_steps_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(trainer.checkpoint.Writer, "save", lambda writer, step, *_: saved.append(step))
    trained(tmp_path, Counter(lambda step: {"loss": 1.0}), 7, every=3)
    assert saved == [3, 6, 7]


@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_a_value_that_is_not_finite_stops_the_run_before_a_checkpoint(tmp_path: Path, poison: float) -> None:
    counter = Counter(lambda step: {"loss": 1.0, "grad_norm": poison if step == 3 else 1.0})
    with pytest.raises(FloatingPointError, match=f"step 3: grad_norm is {poison}"):
        trained(tmp_path, counter, 6, every=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-0000002"]
    assert not (tmp_path / CURVE).exists()


def test_zero_steps_give_an_empty_curve(tmp_path: Path) -> None:
    trained(tmp_path, Counter(lambda step: {}), 0)
    assert (tmp_path / CURVE).read_text() == "step\n"
    assert read_last(tmp_path / CURVE) == {}


def test_a_curve_has_a_column_for_every_name_and_missing_values_stay_empty(tmp_path: Path) -> None:
    write_curve(
        tmp_path / CURVE,
        [{"step": 0, "critic": 2.0}, {"step": 1, "critic": 1.5, "student": 0.1 + 0.2}, {"step": 2, "critic": 1.0}],
    )
    rows = [row.split(",") for row in (tmp_path / CURVE).read_text().splitlines()]
    assert rows[0][0] == "step"
    assert sorted(rows[0]) == ["critic", "step", "student"]
    assert rows[1][rows[0].index("student")] == ""
    assert rows[2][rows[0].index("student")] == "0.30000000000000004"
    assert read_last(tmp_path / CURVE) == {"critic": 1.0, "student": 0.30000000000000004}


def test_names_with_a_slash_are_sent_to_mlflow_only(tmp_path: Path) -> None:
    log = trained(tmp_path, Counter(lambda step: {"loss": 1.0, "x0_abs/frame_00": 0.5}), 3)
    assert (tmp_path / CURVE).read_text().splitlines()[0] == "step,loss"
    assert [more["x0_abs/frame_00"] for more in log.more] == [0.5] * 3
    assert all(more["speed/samples_per_second"] > 0 and more["speed/mfu"] > 0 for more in log.more)


@pytest.mark.parametrize(("every", "called"), [(3, [3, 6, 7]), (100, [7]), (0, [])])
def test_previews_are_written_at_regular_steps_and_at_the_end(every: int, called: list[int], tmp_path: Path) -> None:
    asked: list[int] = []
    run = new_run(tmp_path, Log(), 7, watch=replace(WATCH, samples_every=every))
    train(Counter(lambda step: {"loss": 1.0}), run, asked.append)
    assert asked == called


def test_checkpoints_to_keep_are_not_deleted(tmp_path: Path) -> None:
    train(
        Counter(lambda step: {"loss": 1.0}),
        new_run(tmp_path, Log(), 9, every=1, watch=replace(WATCH, keep_checkpoints_every=3)),
    )
    found = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert found == [f"step-{step:07d}" for step in (3, 6, 8, 9)]


@pytest.mark.parametrize(("name", "value"), [("samples_every", -1), ("samples", 0), ("keep_checkpoints_every", 0)])
def test_a_wrong_watch_is_rejected(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"watch.{name} is {value}; it must be at least"):
        replace(WATCH, **{name: value})
