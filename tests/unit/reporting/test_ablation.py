"""Table 4 has correct means, errors and verdicts, and an inconsistent file is refused."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.reporting import ablation
from causvid.reporting.ablation import CLAIMS, FAILS, HOLDS, LEVEL, MEASURES, ROWS, UNRESOLVED, verdict

STUDENT, TEACHER = "few_step_ode_init_bidirectional_teacher", "many_step_bidirectional"
SPENT = {row: {"updates": 5, "flops": 1e12} for row in ROWS}
OTHER = {HOLDS: FAILS, FAILS: HOLDS, UNRESOLVED: UNRESOLVED}
scores = st.floats(-100, 100).map(lambda value: round(value, 6))
gap_lists = st.lists(scores, min_size=2, max_size=6)


def evaluation(score: float, n: int = 256) -> dict[str, Any]:
    """Return an evaluation of one row and seed in which all measures have the same score."""
    block = {"velocity": score, "frame_psnr": 20 + score, "seen": 1.0}
    windows = [{"velocity": score - k / 100, "shape": None, "frame_psnr": 20.0} for k in range(6)]
    return {
        "n": n,
        "prompts": 32,
        "table4": dict.fromkeys(MEASURES, score),
        "judge": {"velocity": score, "blocks": [{**block, "velocity": None}, block, block]},
        "drift": {"n": 32, "windows": 6, "judge": windows, "blocks": [{**block, "velocity": None}, block, block]},
    }


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the evaluations of the given rows, with one score per seed."""

    def to_folder(rows: Mapping[str, list[float]], inputs: str = "rollout") -> Path:
        for row, values in rows.items():
            folder = tmp_path / (f"{row}-{inputs}" if ROWS[row].distilled else row)
            folder.mkdir(exist_ok=True)
            for seed, score in enumerate(values):
                (folder / f"{seed}.json").write_text(json.dumps(evaluation(score)))
        return tmp_path

    return to_folder


def test_mean_and_standard_error_have_their_textbook_values() -> None:
    assert ablation.summary([1.0, 2.0, 6.0]) == {"mean": 3.0, "se": pytest.approx(math.sqrt(7 / 3))}
    assert ablation.summary([0.25]) == {"mean": 0.25, "se": None}


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([0.10, 0.12, 0.11], HOLDS),
        ([-0.10, -0.12, -0.11], FAILS),
        ([0.10, -0.12, 0.11], UNRESOLVED),
        # the mean is 2 and the standard error is 1: a gap of exactly two standard errors is not resolved
        ([0.0, 3.0, 3.0], UNRESOLVED),
        ([0.1, 3.0, 3.0], HOLDS),
        ([0.2], UNRESOLVED),
        ([0.0, 0.0, 0.0], UNRESOLVED),
        ([0.5, 0.5, 0.5], UNRESOLVED),
        ([0.5, 0.5 + 1e-16, 0.5], UNRESOLVED),
        ([1e-17, 1.1e-17, 1e-17], UNRESOLVED),  # equal scores differ by rounding errors
    ],
)
def test_a_verdict_needs_more_than_two_standard_errors(gaps: list[float], said: str) -> None:
    assert verdict(gaps, scale=1.0) == said


@given(gap_lists)
def test_negative_gaps_have_the_opposite_verdict(gaps: list[float]) -> None:
    assert verdict([-gap for gap in gaps], scale=100) == OTHER[verdict(gaps, scale=100)]


@given(gap_lists, st.randoms())
def test_the_verdict_does_not_depend_on_the_order_of_seeds(gaps: list[float], random: Any) -> None:
    shuffled = list(gaps)
    random.shuffle(shuffled)
    assert verdict(shuffled, scale=100) == verdict(gaps, scale=100)


@given(gap_lists, st.floats(1e-3, 100))
def test_a_larger_mean_gap_keeps_a_claim(gaps: list[float], more: float) -> None:
    if verdict(gaps, scale=100) == HOLDS:
        assert verdict([gap + more for gap in gaps], scale=100) == HOLDS


@given(gap_lists, st.sampled_from([2.0**-10, 2.0**-3, 2.0**5]))
def test_the_verdict_does_not_depend_on_units(gaps: list[float], unit: float) -> None:
    assert verdict([gap * unit for gap in gaps], scale=100 * unit) == verdict(gaps, scale=100)


@given(scores, st.integers(1, 6), st.floats(-1e-12, 1e-12))
def test_equal_gaps_of_all_seeds_are_not_resolved(gap: float, count: int, rounding: float) -> None:
    assert verdict([gap, *[gap + rounding] * (count - 1)], scale=1.0) == UNRESOLVED


def test_every_claim_can_hold_and_can_fail(write: Write) -> None:
    """If the two rows of a claim are exchanged, the verdict of the claim changes for all values of the other rows."""
    noise = [0.000, 0.002, 0.001]
    for claim in CLAIMS:
        for better, said in ((0.8, HOLDS), (0.4, FAILS)):
            rows = {row: [0.5 + value for value in noise] for row in ROWS}
            # The two rows have different noise, because equal gaps are not resolved.
            rows |= {claim.higher: [better + value**2 for value in noise], claim.lower: [0.6, 0.601, 0.602]}
            found = ablation.read_evaluations(write(rows), range(3), "rollout")
            claims = ablation.table4(found, SPENT)["claims"]
            assert {claims[f"{claim.name}/{measure}"] for measure in claim.measures} == {said}, claim.name


def test_a_student_is_as_good_as_its_teacher_within_the_margin(write: Write) -> None:
    """A loss of half the margin holds and a loss of twice the margin fails, although both occur in every seed."""
    for short, said in ((0.5 * LEVEL, HOLDS), (2 * LEVEL, FAILS)):
        rows = {row: [0.5, 0.501, 0.502] for row in ROWS}
        rows |= {TEACHER: [0.8, 0.801, 0.802], STUDENT: [0.8 * (1 - short), 0.801 * (1 - short), 0.8021 * (1 - short)]}
        found = ablation.read_evaluations(write(rows), range(3), "rollout")
        assert ablation.table4(found, SPENT)["claims"]["student_is_as_good_as_many_step_bidirectional/frame"] == said


def test_gaps_are_paired_by_seed(write: Write) -> None:
    """A row that is slightly better in every seed is better, even if the scores of different seeds differ much more."""
    rows = {row: [0.1, 0.5, 0.9] for row in ROWS}
    rows[STUDENT] = [0.111, 0.512, 0.913]
    made = ablation.table4(ablation.read_evaluations(write(rows), range(3), "rollout"), SPENT)
    assert made["claims"]["no_ode_init_is_worse/temporal"] == HOLDS
    assert made["gaps"]["no_ode_init_is_worse/temporal"]["mean"] == pytest.approx(0.012)
    assert made["rows"][STUDENT]["temporal"]["se"] > 0.2
    # equal scores give the verdict "not resolved"
    assert made["claims"]["many_step_causal_is_worse_than_bidirectional/text"] == UNRESOLVED


def test_the_result_file(write: Write) -> None:
    """The result contains seeds, prompts, all rows with measures and costs, and all claims, and is JSON without NaN."""
    found = ablation.read_evaluations(write({row: [0.1 * k, 0.2 * k] for k, row in enumerate(ROWS)}), (0, 1), "rollout")
    made = json.loads(json.dumps(ablation.table4(found, SPENT), allow_nan=False))
    assert (made["seeds"], made["prompts"], made["videos"], list(made["rows"])) == (2, 32, 256, list(ROWS))
    assert {tuple(row) for row in made["rows"].values()} == {MEASURES}
    assert made["costs"] == SPENT
    assert len(made["claims"]) == 9 * 3 + 1 == len(made["gaps"])
    assert set(made["claims"].values()) <= {HOLDS, FAILS, UNRESOLVED}
    curves = made["curves"]["many_step_causal"]
    assert curves["blocks"]["velocity"][0] == {"mean": None, "se": None}  # a block of one frame has no velocity
    assert curves["blocks"]["velocity"][1]["mean"] == pytest.approx(0.3)
    assert [point["mean"] for point in curves["windows"]["velocity"]] == pytest.approx(
        [0.3 - k / 100 for k in range(6)]
    )
    assert "shape" not in curves["windows"]


def test_one_seed_has_means_but_no_verdict(write: Write) -> None:
    made = ablation.table4(ablation.read_evaluations(write({row: [0.5] for row in ROWS}), (0,), "rollout"), SPENT)
    assert set(made["claims"].values()) == {UNRESOLVED}
    assert made["rows"][STUDENT]["frame"] == {"mean": 0.5, "se": None}


def test_rows_of_dmd_depend_on_the_inputs(write: Write) -> None:
    """Only rows without DMD are equal in the tables of both inputs."""
    write({row: [0.5] for row in ROWS}, "rollout")
    folder = write({row: [0.7] for row in ROWS if ROWS[row].distilled}, "data")
    both = [
        ablation.table4(ablation.read_evaluations(folder, (0,), inputs), SPENT)["rows"]
        for inputs in ("rollout", "data")
    ]
    assert {row for row in ROWS if both[0][row] == both[1][row]} == {row for row in ROWS if not ROWS[row].distilled}
    assert both[1][STUDENT]["text"]["mean"] == 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it | {"table4": None}, "1.json has no table4: only videos of the toy world"),
        (
            lambda it: it | {"table4": it["table4"] | {"frame": None}},
            "1.json: table4.frame is None, not a finite number",
        ),
        (lambda it: it | {"n": 128}, "1.json has n 128; .*has n 256"),
    ],
)
def test_an_inconsistent_evaluation_is_refused_by_name(
    write: Write, change: Callable[[Any], Any], message: str
) -> None:
    folder = write({row: [0.5, 0.6] for row in ROWS})
    path = folder / TEACHER / "1.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        ablation.read_evaluations(folder, (0, 1), "rollout")


def test_a_missing_evaluation_is_refused_with_the_command_to_run(write: Write) -> None:
    folder = write({row: [0.5, 0.6] for row in ROWS})
    with pytest.raises(ValueError, match=r"many_step_bidirectional/2.json is missing; run 'make ablation'"):
        ablation.read_evaluations(folder, (0, 1, 2), "rollout")
    with pytest.raises(ValueError, match=r"-data/0.json is missing"):
        ablation.read_evaluations(folder, (0, 1), "data")


@pytest.mark.parametrize("text", ["seeds: []", "seeds: [0, 0]", "seeds: three", "rows: {}"])
def test_seeds_must_be_a_non_empty_list_without_repetitions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="seeds"):
        ablation.read_seeds(path)
    path.write_text("seeds: [3, 1]\nrows: {}\n")
    assert ablation.read_seeds(path) == (3, 1)


def test_the_commit_is_dirty_if_a_source_file_changed_but_not_if_a_result_changed(tmp_path: Path) -> None:
    assert ablation.commit(tmp_path) is None

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name in (
        "code.py",
        "dvc.lock",
        "ablation/dvc.lock",
        "reports/ablate/table4.json",
        "ablation/evaluate/a/0.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git("init", "--quiet")
    git("add", "-A")
    git("commit", "--quiet", "-m", "one")
    for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("dvc.lock")]:
        path.write_text("new")
    assert ablation.commit(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code.py").write_text("new")
    assert ablation.commit(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": True}
