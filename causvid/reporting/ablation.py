"""The paper's Table 4 over seeds: means, their standard errors, and which of the paper's claims hold here.

A row is one way to train. Rows are paired: the same seed means the same noise, so gaps are taken seed by seed.
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

from causvid import params

ROWS = {
    "many_step_bidirectional": "many steps, bidirectional (the teacher)",
    "many_step_causal": "many steps, causal",
    "few_step_no_ode_init_bidirectional_teacher": "few steps, no ODE init, bidirectional teacher",
    "few_step_ode_init_no_teacher": "few steps, ODE init only",
    "few_step_ode_init_causal_teacher": "few steps, ODE init, causal teacher",
    "few_step_ode_init_bidirectional_teacher": "few steps, ODE init, bidirectional teacher (CausVid)",
    "few_step_bidirectional": "few steps, bidirectional student",
}
UNDISTILLED = ("many_step_bidirectional", "many_step_causal", "few_step_ode_init_no_teacher")  # no DMD, so no inputs
QUALITY = ("temporal", "frame", "text")
MEASURES = (*QUALITY, "diversity")
HOLDS, FAILS, UNRESOLVED = "holds", "does not hold", "not resolved"
LEVEL = 0.01  # of the teacher's score: less than the smallest loss that the paper's table calls one (1.4 %)
ROUNDING = 1e-9  # of a score: gaps that differ by less than this do not differ
# Figure 4: the rows drawn, the judge's measures, and where an evaluation has one entry a window or a block.
DRAWN = ("few_step_ode_init_bidirectional_teacher", "few_step_ode_init_causal_teacher", "many_step_causal")
DRAWN_MEASURES = {"velocity": "velocity", "frame_psnr": "frame PSNR, dB", "shape": "shape", "seen": "object seen"}
ALONG = {"blocks": ("drift", "blocks"), "windows": ("drift", "judge")}
UNKNOWN: dict[str, float | None] = {"mean": None, "se": None}

Evaluations = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The paper's: row ``higher`` scores above row ``lower``; ``margin``: the share of lower's it may fall short."""

    name: str
    higher: str
    lower: str
    measures: tuple[str, ...]
    margin: float


_STUDENT = "few_step_ode_init_bidirectional_teacher"
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
)


def read_seeds(settings: Path) -> tuple[int, ...]:
    """``seeds`` of ablation/params.yaml. Raises ValueError for none or for one that stands there twice."""
    found = params.read_mapping(settings, holding="settings", remedy="restore it from git").get("seeds")
    seeds = params.build(tuple[int, ...], found, name=f"{settings}: seeds")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{settings}: seeds is {list(seeds)}; it must name at least one seed, each once")
    return seeds


def read_evaluations(folder: Path, seeds: Sequence[int], inputs: str) -> dict[str, list[dict[str, Any]]]:
    """A row's evaluations in the order of ``seeds``; of a row of DMD, those of the students trained on ``inputs``.

    Raises ValueError naming the file that is missing, that has not got a measure, or that scored another number of
    videos than the rest.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    counts: dict[int, Path] = {}
    for row in ROWS:
        run = row if row in UNDISTILLED else f"{row}-{inputs}"
        paths = [folder / run / f"{seed}.json" for seed in seeds]
        found[row] = [_read(path) for path in paths]
        counts |= {evaluation["n"]: path for evaluation, path in zip(found[row], paths, strict=True)}
    if len(counts) > 1:
        said = "; ".join(f"{path} has n {n}" for n, path in sorted(counts.items()))
        raise ValueError(f"rows of one table need the same number of videos: {said}; run 'make ablation' again")
    return found


def table4(found: Evaluations) -> dict[str, Any]:
    """Seeds, different prompts, videos of a seed and row; scores, claims with paired gaps, the curves of figure 4."""
    tests = {f"{claim.name}/{measure}": (claim, measure) for claim in CLAIMS for measure in claim.measures}
    gaps = {name: _gaps(found, *test) for name, test in tests.items()}
    first = next(iter(found.values()))
    return {
        "seeds": len(first),
        "prompts": first[0]["prompts"],
        "videos": first[0]["n"],
        "rows": {row: {name: summary(_scores(found, row, name)) for name in MEASURES} for row in found},
        "claims": {name: verdict(gaps[name], scale=max(map(abs, _both(found, *test)))) for name, test in tests.items()},
        "gaps": {name: summary(values) for name, values in gaps.items()},
        "curves": {row: {along: dict(_curves(found[row], *path)) for along, path in ALONG.items()} for row in DRAWN},
    }


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """mean, and se: the standard error of that mean, sd / sqrt(n); None of a single value."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "se": se}


def verdict(gaps: Sequence[float], *, scale: float) -> str:
    """What paired ``gaps`` (one a seed, positive = the paper's direction) of scores up to ``scale`` say of a claim.

    More than two standard errors from zero it holds, or does not. One seed says nothing; nor do seeds that agree to
    the last digit, for then the seed changed nothing (a score at its ceiling), and no error can be estimated.
    """
    found = summary(gaps)
    mean, se = found["mean"], found["se"]
    assert mean is not None
    if se is None or se <= ROUNDING * scale or abs(mean) <= 2 * se:
        return UNRESOLVED
    return HOLDS if mean > 0 else FAILS


def commit(root: Path) -> dict[str, Any] | None:
    """sha, and dirty: whether a tracked file that no stage writes differs from it. None outside git."""
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
        raise ValueError(f"{path} is missing; 'make ablation' makes it")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not found.get("table4"):
        raise ValueError(
            f"{path} has no table4: only videos of the toy world are scored so (download.source toy_world)"
        )
    for name in MEASURES:
        value = found["table4"].get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: table4.{name} is {value}, not a number; evaluate the row again")
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
    """Measure, and its summary over seeds at every entry of the lists at ``path``; None where a seed has no value."""
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
