"""A stage ends with one line: its main numbers, its duration, or where it was stopped and what is kept."""

from __future__ import annotations

import pytest

from causvid.harness import lines
from causvid.harness.progress import progress


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.os, "getloadavg", lambda: (2.0, 9.0, 9.0))
    monkeypatch.setattr(lines, "cores", lambda: 2)


def test_a_finished_stage_names_its_main_numbers_and_its_duration() -> None:
    headline = ("{steps} steps", "student loss {student_loss:.3f}", "velocity {judge[velocity]:.2f}")
    results = {"steps": 254, "student_loss": 0.43421, "judge": {"velocity": 0.987}, "other": 1}
    said = lines.finished("train_dmd", headline, results, 228.4)
    assert said == "train_dmd: 254 steps, student loss 0.434, velocity 0.99, 3 min 48 s"


def test_a_number_that_the_stage_did_not_report_is_omitted() -> None:
    headline = ("{steps} steps", "loss {loss:.3f}", "velocity {judge[velocity]:.2f}", "{fps:.1f} frames/s")
    said = lines.finished("train_teacher", headline, {"steps": 0, "judge": None, "fps": None}, 1.26)
    assert said == "train_teacher: 0 steps, 1.3 s"


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines.busy() == ""
    monkeypatch.setattr(lines.os, "getloadavg", lambda: (4.2, 0.0, 0.0))
    assert lines.busy() == " (machine busy, load 4.2 on 2 cores: timings are not comparable)"
    assert lines.finished("x", (), {}, 3).endswith(
        "3.0 s (machine busy, load 4.2 on 2 cores: timings are not comparable)"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (59.6, "1 min 0 s"), (72, "1 min 12 s"), (5000, "1 h 23 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert lines.lasting(seconds) == said


def test_a_stopped_training_says_which_checkpoint_is_kept_and_how_to_continue() -> None:
    work = progress(range(254), total=254, what="train_dmd", kept=lambda: "the checkpoint of step 100 is kept")
    for _ in range(109):
        next(work)
    with pytest.raises(KeyboardInterrupt):
        work.throw(KeyboardInterrupt)
    assert lines.stopped("train_dmd") == (
        "train_dmd: stopped at step 108 of 254; the checkpoint of step 100 is kept; run the same command again to continue"
    )


def test_other_stopped_work_is_named() -> None:
    work = progress(range(768), total=768, what="extract_latents")
    next(work)
    next(work)
    work.close()
    said = lines.stopped("extract_latents")
    assert said == "extract_latents: stopped at 1 of 768 (extract_latents); run the same command again to continue"
