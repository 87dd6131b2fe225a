"""Build the scoreboard of the report, and three sentences about the scores of the student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from causvid.reporting.summary import SCORES, Headline
from causvid.reporting.tables import MODELS, SETS, Results, lookup, number

REFERENCES = ("clips", "reconstruction")
SHOWN = (*REFERENCES, "teacher", "ode_init", "dmd")
TEACHER, STUDENT = MODELS[0], MODELS[-1]
CLOSE = 0.02  # smallest difference of velocity scores that a sentence mentions
NOTE = (
    "Arrows point in the direction of better scores. The best score of the models is bold. Brackets contain 95 % "
    "confidence intervals from a bootstrap over the videos. The interval of the Fréchet distance is from a jackknife, "
    "because a video that is drawn twice would increase the distance. Velocity and motion are shares of the steps and "
    "videos with the right motion. Temporal, frame and text are the columns of the paper's Table 4, from 0 to 100."
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of a set of videos.

    Attributes:
        value: The score; None if it was not measured.
        interval: 95 % confidence interval (low, high); None if it was not estimated.
        text: The score for readers.
        between: The interval for readers; empty if there is none, or if its rounded ends are equal.
        is_best: Whether no other model has a better score. Real clips and reconstructions are not models.
    """

    value: float | None
    interval: tuple[float, float] | None
    text: str
    between: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of a set of videos, in the order of ``summary.SCORES``."""

    label: str
    is_reference: bool
    scores: tuple[Score, ...]


def scoreboard(results: Results) -> tuple[Row, ...]:
    """Return the scores of real clips, VAE reconstructions, the teacher, and the student before and after DMD."""
    best = {each.name: _best(results, each) for each in SCORES}
    return tuple(
        Row(
            label=SETS[name],
            is_reference=name in REFERENCES,
            scores=tuple(_score(results, each, name, best[each.name]) for each in SCORES),
        )
        for name in SHOWN
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the scoreboard as a table in GitHub's Markdown. The best scores are bold."""
    head = ("videos", *(f"{each.label} {arrow(each)}" for each in SCORES))
    lines = [head, ("---",) * len(head)]
    for row in rows:
        cells = (f"**{score.text}**" if score.is_best else score.text for score in row.scores)
        between = (f" ({score.between})" if score.between else "" for score in row.scores)
        lines.append((row.label, *(cell + extra for cell, extra in zip(cells, between, strict=True))))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arrow(headline: Headline) -> str:
    """Return an arrow that points in the direction of better scores."""
    return "↑" if headline.higher_is_better else "↓"


def good(results: Results) -> str:
    """Return a sentence with the scores in which the student is not worse than its teacher; empty without scores."""
    compared = dict(_compared(results))
    better = [each.label for each, gap in compared.items() if gap > 0]
    equal = [each.label for each, gap in compared.items() if gap == 0]
    parts = [f"better than its teacher in {_listed(better)}"] if better else []
    parts += [f"as good as its teacher within the intervals in {_listed(equal)}"] if equal else []
    return f"The student is {', and '.join(parts)}." if parts else ""


def not_good(results: Results) -> str:
    """Return a sentence with the scores in which the student is worse than its teacher; empty without scores."""
    compared = dict(_compared(results))
    worse = [_named(results, each) for each, gap in compared.items() if gap < 0]
    if worse:
        return f"The student is worse than its teacher in {_listed(worse)}."
    return "The student is worse than its teacher in none of these scores." if compared else ""


def by_block(results: Results) -> str:
    """Return a sentence with the velocity score of each block of the student; empty if it was not measured."""
    blocks = lookup(results.get(f"evaluate/{STUDENT}"), "judge", "blocks") or ()
    values = [block["velocity"] for block in blocks]
    if len(values) < 2:
        return ""
    shares = ", ".join(number(value, 2) for value in values)
    listed = f"The velocity scores of the student by block of a clip, from first to last, are {shares}."
    known = [value for value in values if value is not None]
    if len(known) > 1 and min(known[1:]) - known[0] > CLOSE:
        return f"{listed} The first block is the hardest, because it has no earlier frames to continue."
    return listed


def _compared(results: Results) -> Iterator[tuple[Headline, int]]:
    """Yield for each measured score 1 if the student is better than its teacher, -1 if it is worse, otherwise 0.

    Scores whose intervals overlap are equal. A score without an interval is an interval of width zero.
    """
    for each in SCORES:
        ours, theirs = (_range(results, each, name) for name in (STUDENT, TEACHER))
        if ours and theirs:
            above, below = ours[0] > theirs[1], ours[1] < theirs[0]
            yield each, (above - below) * (1 if each.higher_is_better else -1)


def _range(results: Results, headline: Headline, name: str) -> tuple[float, float] | None:
    value = lookup(results.get(f"evaluate/{name}"), *headline.path)
    return None if value is None else _interval(results, headline, name) or (value, value)


def _interval(results: Results, headline: Headline, name: str) -> tuple[float, float] | None:
    low, high = lookup(results.get(f"evaluate/{name}"), *headline.interval) or (None, None)
    return None if low is None or high is None else (low, high)


def _best(results: Results, headline: Headline) -> float | None:
    values = [lookup(results.get(f"evaluate/{name}"), *headline.path) for name in SHOWN if name not in REFERENCES]
    known = [value for value in values if value is not None]
    return (max if headline.higher_is_better else min)(known, default=None)


def _score(results: Results, headline: Headline, name: str, best: float | None) -> Score:
    value = lookup(results.get(f"evaluate/{name}"), *headline.path)
    interval = _interval(results, headline, name)
    edges = [number(edge, headline.decimals) for edge in interval or ()]
    between = "–".join(edges) if len(set(edges)) > 1 else ""
    is_best = value is not None and value == best and name not in REFERENCES
    text = number(value, headline.decimals)
    return Score(value=value, interval=interval, text=text, between=between, is_best=is_best)


def _named(results: Results, headline: Headline) -> str:
    ours, theirs = (
        number(lookup(results.get(f"evaluate/{name}"), *headline.path), headline.decimals)
        for name in (STUDENT, TEACHER)
    )
    return f"{headline.label} ({ours}, teacher {theirs})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
