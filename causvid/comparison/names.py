"""Find short, unique names for params and for runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

LONGEST = 60  # number of characters of a label without the id of the run


def shortest(names: Collection[str]) -> dict[str, str]:
    """Map dotted names to their shortest endings that no other name has."""
    endings = {name: [name.split(".", index)[-1] for index in range(name.count("."), -1, -1)] for name in names}
    counts = Counter(ending for each in endings.values() for ending in each)
    return {name: next((it for it in each if counts[it] == 1), name) for name, each in endings.items()}


def labels(params: Sequence[Mapping[str, str]], otherwise: Sequence[str]) -> list[str]:
    """Return a unique label for each run, with the params in which the runs differ.

    Args:
        params: Params of each run, keyed by dotted name.
        otherwise: Unique label of each run, for runs that do not differ from another run in their params.
    """
    every = sorted({name for each in params for name in each})
    differing = [name for name in every if len({each[name] for each in params if name in each}) > 1]
    short = shortest(every)
    found = [", ".join(f"{short[name]}={each[name]}" for name in differing if name in each) for each in params]
    counts = Counter(found)
    return [
        label if counts[label] == 1 and 0 < len(label) <= LONGEST else f"{label[:LONGEST]} {other}".strip()
        for label, other in zip(found, otherwise, strict=True)
    ]
