"""Compute the paper's Table 4 over several seeds: means, standard errors, costs, and a test of the claims.

A row is one method of training. The same seed gives the same noise in every row. Two rows are therefore compared by
their differences for each seed (paired gaps).
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid import costs, params


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of Table 4: a model that is trained from the shared bidirectional teacher.

    Attributes:
        label: Name of the row in the report.
        updates: Stages that update the weights of the model, one after another.
        needs: Other stages that the row needs. Their FLOPs count, but not their updates.
    """

    label: str
    updates: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def distilled(self) -> bool:
        """Whether the model is trained by DMD, and so depends on ``train_dmd.inputs``."""
        return "train_dmd" in self.updates

    @property
    def causal_teacher(self) -> bool:
        """Whether the teacher of DMD is the causal teacher."""
        return "train_causal_teacher" in self.needs


_PAIRS = ("generate_ode_pairs",)
ROWS = {
    "many_step_bidirectional": TableRow(label="many steps, bidirectional (the teacher)"),
    "many_step_bidirectional_longer": TableRow(
        label="many steps, bidirectional, trained further", updates=("train_teacher",)
    ),
    "many_step_causal": TableRow(label="many steps, causal (the causal teacher)", updates=("train_causal_teacher",)),
    "few_step_no_ode_init_bidirectional_teacher": TableRow(
        label="few steps, no ODE init, bidirectional teacher", updates=("train_dmd",)
    ),
    "few_step_ode_init_no_teacher": TableRow(
        label="few steps, ODE init only", updates=("train_ode_init",), needs=_PAIRS
    ),
    "few_step_ode_init_causal_teacher": TableRow(
        label="few steps, ODE init, causal teacher",
        updates=("train_ode_init", "train_dmd"),
        needs=(*_PAIRS, "train_causal_teacher"),
    ),
    "few_step_ode_init_bidirectional_teacher": TableRow(
        label="few steps, ODE init, bidirectional teacher (CausVid)",
        updates=("train_ode_init", "train_dmd"),
        needs=_PAIRS,
    ),
    "few_step_causal_start_ode_init": TableRow(
        label="few steps, from the causal teacher, ODE init, bidirectional teacher",
        updates=("train_causal_teacher", "train_ode_init", "train_dmd"),
        needs=_PAIRS,
    ),
    "few_step_causal_start_no_ode_init": TableRow(
        label="few steps, from the causal teacher, no ODE init, bidirectional teacher",
        updates=("train_causal_teacher", "train_dmd"),
    ),
    "few_step_bidirectional": TableRow(
        label="few steps, bidirectional student", updates=("train_ode_init", "train_dmd"), needs=_PAIRS
    ),
}
QUALITY = ("temporal", "frame", "text")
MEASURES = (*QUALITY, "diversity")
HOLDS, FAILS, UNRESOLVED = "holds", "does not hold", "not resolved"
# A student is as good as the teacher if its score is lower by at most this share of the teacher's score. The smallest
# difference that the paper counts as a loss is 1.4 %.
LEVEL = 0.01
ROUNDING = 1e-9  # smaller differences between gaps, as a share of a score, are rounding errors
# Figure 4: the rows, the scores of the judge, and the keys of the scores per block and per window in an evaluation.
DRAWN = (
    "few_step_ode_init_bidirectional_teacher",
    "few_step_ode_init_causal_teacher",
    "many_step_causal",
    "few_step_causal_start_ode_init",
)
DRAWN_MEASURES = {"velocity": "velocity", "frame_psnr": "frame PSNR, dB", "shape": "shape", "seen": "object seen"}
ALONG = {"blocks": ("drift", "blocks"), "windows": ("drift", "judge")}
UNKNOWN: dict[str, float | None] = {"mean": None, "se": None}

Evaluations = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that one row has a higher score than another.

    Attributes:
        name: Key of the claim.
        higher: Row with the higher score.
        lower: Row with the lower score.
        measures: Columns of Table 4 to which the claim applies.
        margin: Share of the lower row's score by which the score of the higher row may be smaller.
        ours: Whether this project makes the claim, not the paper.
    """

    name: str
    higher: str
    lower: str
    measures: tuple[str, ...]
    margin: float
    ours: bool = False


_STUDENT, _CAUSAL_START = "few_step_ode_init_bidirectional_teacher", "few_step_causal_start_ode_init"
CLAIMS = (
    Claim(
        name="no_ode_init_is_worse",
        higher=_STUDENT,
        lower="few_step_no_ode_init_bidirectional_teacher",
        measures=QUALITY,
        margin=0.0,
    ),
    Claim(
        name="ode_init_only_is_worse",
        higher=_STUDENT,
        lower="few_step_ode_init_no_teacher",
        measures=QUALITY,
        margin=0.0,
    ),
    Claim(
        name="causal_teacher_is_worse",
        higher=_STUDENT,
        lower="few_step_ode_init_causal_teacher",
        measures=QUALITY,
        margin=0.0,
    ),
    Claim(
        name="many_step_causal_is_worse_than_bidirectional",
        higher="many_step_bidirectional",
        lower="many_step_causal",
        measures=QUALITY,
        margin=0.0,
    ),
    Claim(
        name="many_step_causal_is_worse_than_bidirectional_trained_further",
        higher="many_step_bidirectional_longer",
        lower="many_step_causal",
        measures=QUALITY,
        margin=0.0,
        ours=True,
    ),
    Claim(
        name="student_is_as_good_as_many_step_bidirectional",
        higher=_STUDENT,
        lower="many_step_bidirectional",
        measures=QUALITY,
        margin=LEVEL,
    ),
    Claim(
        name="student_is_less_diverse_than_teacher",
        higher="many_step_bidirectional",
        lower=_STUDENT,
        measures=("diversity",),
        margin=0.0,
    ),
    Claim(
        name="start_from_teacher_is_worse_than_from_causal_teacher",
        higher=_CAUSAL_START,
        lower=_STUDENT,
        measures=QUALITY,
        margin=0.0,
        ours=True,
    ),
    Claim(
        name="no_ode_init_from_causal_teacher_is_worse",
        higher=_CAUSAL_START,
        lower="few_step_causal_start_no_ode_init",
        measures=QUALITY,
        margin=0.0,
        ours=True,
    ),
    Claim(
        name="student_from_causal_teacher_is_as_good_as_many_step_bidirectional",
        higher=_CAUSAL_START,
        lower="many_step_bidirectional",
        measures=QUALITY,
        margin=LEVEL,
        ours=True,
    ),
)


def read_seeds(settings: Path) -> tuple[int, ...]:
    """Read ``seeds`` from ablation/params.yaml. Raises ValueError if there is no seed, or if a seed is repeated."""
    listed = params.read_mapping(settings, holding="settings", remedy="restore it from git").get("seeds")
    seeds = params.build(tuple[int, ...], listed, name=f"{settings}: seeds")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{settings}: seeds is {list(seeds)}; list at least one seed, and each seed once")
    return seeds


def read_evaluations(folder: Path, seeds: Sequence[int], inputs: str) -> dict[str, list[dict[str, Any]]]:
    """Read the evaluations of every row.

    Args:
        folder: Folder of the evaluations.
        seeds: Seeds, which determine the order of the evaluations of a row.
        inputs: Value of ``train_dmd.inputs`` in the rows with DMD.

    Raises:
        ValueError: An evaluation is missing, lacks a measure, or scored another number of videos than the other
            evaluations. The message names the file.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    counts: dict[int, Path] = {}
    for row in ROWS:
        run = f"{row}-{inputs}" if ROWS[row].distilled else row
        paths = [folder / run / f"{seed}.json" for seed in seeds]
        found[row] = [_read(path) for path in paths]
        counts |= {evaluation["n"]: path for evaluation, path in zip(found[row], paths, strict=True)}
    if len(counts) > 1:
        numbers = "; ".join(f"{path} has n {n}" for n, path in sorted(counts.items()))
        raise ValueError(f"all rows of a table need the same number of videos: {numbers}; run 'make ablation' again")
    return found


def cost(row: str, stages: Mapping[str, costs.Row]) -> dict[str, float]:
    """Return the updates and the training FLOPs that ``row`` adds to the shared bidirectional teacher.

    Args:
        row: Key of ``ROWS``.
        stages: Costs of the stages of this row, by stage.

    Returns:
        ``updates``, the number of optimizer steps of the row's model, and ``flops``, those of all stages of the row.
    """
    updated, needed = ([stages[name] for name in names] for names in (ROWS[row].updates, ROWS[row].needs))
    return {"updates": sum(it.updates for it in updated), "flops": sum(it.flops for it in (*updated, *needed))}


def table4(found: Evaluations, spent: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Compute the table.

    Args:
        found: Evaluations of every row.
        spent: Result of ``cost`` for every row.

    Returns:
        A dictionary. ``seeds`` is the number of seeds, ``prompts`` the number of different prompts, and ``videos`` the
        number of videos per seed and row. ``rows`` has a ``summary`` per row and measure, and ``costs`` is ``spent``.
        ``claims`` has a ``verdict`` per claim and measure. ``gaps`` has a ``summary`` of the paired gaps per claim and
        measure. ``curves`` has the lines of figure 4.
    """
    tests = {f"{claim.name}/{measure}": (claim, measure) for claim in CLAIMS for measure in claim.measures}
    gaps = {name: _gaps(found, *test) for name, test in tests.items()}
    first = next(iter(found.values()))
    return {
        "seeds": len(first),
        "prompts": first[0]["prompts"],
        "videos": first[0]["n"],
        "rows": {row: {name: summary(_scores(found, row, name)) for name in MEASURES} for row in found},
        "costs": dict(spent),
        "claims": {name: verdict(gaps[name], scale=max(map(abs, _both(found, *test)))) for name, test in tests.items()},
        "gaps": {name: summary(values) for name, values in gaps.items()},
        "curves": {row: {along: dict(_curves(found[row], *path)) for along, path in ALONG.items()} for row in DRAWN},
    }


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of n values and its standard error se = sd / sqrt(n). For a single value, se is None."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "se": se}


def verdict(gaps: Sequence[float], *, scale: float) -> str:
    """Test a claim.

    A claim is resolved if the mean gap differs from zero by more than two standard errors. With a single seed, a claim
    is not resolved. If the gaps of all seeds are equal except for rounding errors, a claim is not resolved either: the
    seed had no influence (for example, because all scores are at their maximum), so that the standard error cannot be
    estimated.

    Args:
        gaps: One paired gap per seed, positive in the direction of the claim.
        scale: Largest absolute score, which determines the size of rounding errors.
    """
    estimate = summary(gaps)
    mean, se = estimate["mean"], estimate["se"]
    assert mean is not None
    if se is None or se <= ROUNDING * scale or abs(mean) <= 2 * se:
        return UNRESOLVED
    return HOLDS if mean > 0 else FAILS


def commit(root: Path) -> dict[str, Any] | None:
    """Return the commit as ``sha`` and ``dirty``, or None outside git.

    ``dirty`` is whether a tracked file differs from the commit. Files that stages write are ignored.
    """
    git = ["git", "-C", str(root)]
    sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if sha.returncode:
        return None
    written = [f":(exclude,top){path}" for path in ("reports", "ablation/evaluate", "dvc.lock", "ablation/dvc.lock")]
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *written]
    changes = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    return {"sha": sha.stdout.strip(), "dirty": bool(changes.strip())}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; run 'make ablation'")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not found.get("table4"):
        raise ValueError(
            f"{path} has no table4: only videos of the toy world have these scores; set download.source to toy_world"
        )
    for name in MEASURES:
        value = found["table4"].get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: table4.{name} is {value}, not a finite number; evaluate the row again")
    return found


def _scores(found: Evaluations, row: str, measure: str) -> list[float]:
    return [evaluation["table4"][measure] for evaluation in found[row]]


def _both(found: Evaluations, claim: Claim, measure: str) -> list[float]:
    return _scores(found, claim.higher, measure) + _scores(found, claim.lower, measure)


def _gaps(found: Evaluations, claim: Claim, measure: str) -> list[float]:
    higher, lower = _scores(found, claim.higher, measure), _scores(found, claim.lower, measure)
    allowed = claim.margin * abs(statistics.fmean(lower))
    return [a - b + allowed for a, b in zip(higher, lower, strict=True)]


def _curves(
    evaluations: Sequence[Mapping[str, Any]], *path: str
) -> Iterator[tuple[str, list[dict[str, float | None]]]]:
    """Yield each measure and its summaries over the seeds, with one summary for each entry of the lists at ``path``.

    If the entry of a seed has no value, the summary is ``UNKNOWN``.
    """
    lists = []
    for evaluation in evaluations:
        place: Any = evaluation
        for key in path:
            place = place.get(key) if isinstance(place, Mapping) else None
        lists.append(place or [])
    for name in DRAWN_MEASURES:
        places = [[entry.get(name) for entry in entries] for entries in zip(*lists, strict=True)]
        points = [UNKNOWN if None in values else summary(values) for values in places]
        if any(point["mean"] is not None for point in points):
            yield name, points
