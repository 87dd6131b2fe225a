"""``make tries``: print the experiments of DVC as one table, with the headline numbers and the best values in bold."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from dvc.scm import SCMError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from causvid import params
from causvid.comparison.names import shortest
from causvid.reporting.summary import HEADLINES, Headline
from causvid.reporting.tables import NOT_MEASURED, number

PARAMS = Path("params.yaml")
NUMBER = 8  # width of the columns with numbers


@dataclass(frozen=True, kw_only=True)
class Try:
    """An experiment, the commit that experiments start from, or the files in the workspace.

    Attributes:
        name: DVC's name of the experiment, the name of the branch or of the commit, or "workspace".
        changed: Params that differ from the commit, keyed by the shortest dotted name that no other param has.
        numbers: Headline numbers that were measured, keyed by name.
    """

    name: str
    changed: Mapping[str, str]
    numbers: Mapping[str, float]


def tries(shown: Sequence[Mapping[str, Any]], sections: Sequence[str]) -> list[Try]:
    """Return the experiments in the order in which DVC lists them.

    Args:
        shown: The rows of ``dvc.api.exp_show``.
        sections: Names of the sections of params.yaml. Other columns of the rows are metrics and dependencies.
    """
    base = next((row for row in shown if row["typ"] == "baseline" and row["rev"] != "workspace"), {})
    # DVC writes the name of the file in front of a name that several files contain.
    names = {column: column.removeprefix(f"{PARAMS}:") for row in shown for column in row}
    known = {column: name for column, name in names.items() if name.split(".")[0] in sections}
    short = shortest(set(known.values()))
    return [
        Try(
            name=str(row["Experiment"] or row["rev"]),
            changed={short[name]: _shown(row.get(key)) for key, name in known.items() if row.get(key) != base.get(key)},
            numbers={each.name: float(row[each.name]) for each in HEADLINES if _is_number(row.get(each.name))},
        )
        for row in shown
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _shown(value: object) -> str:
    """Return the value of a param for the table. DVC returns every number as a float, and null as None."""
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(found: Sequence[Try]) -> Table:
    """Return the table of the experiments."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), header_style="underline")
    drawn.add_column("experiment", no_wrap=True)
    drawn.add_column("changed params", overflow="fold", min_width=26)
    for each in HEADLINES:
        drawn.add_column(f"{each.label}\n{'↑' if each.higher_is_better else '↓'}", justify="right", width=NUMBER)
    for one in found:
        changed = "\n".join(f"{name}={value}" for name, value in one.changed.items())
        drawn.add_row(Text(one.name), Text(changed or "-"), *(_cell(one, each, found) for each in HEADLINES))
    return drawn


def _cell(one: Try, headline: Headline, found: Sequence[Try]) -> Text:
    """Return a number for the table: in bold if it is the best of several different numbers."""
    if headline.name not in one.numbers:
        return Text(NOT_MEASURED, style="dim")
    value, measured = one.numbers[headline.name], {each.numbers.get(headline.name) for each in found} - {None}
    best = (max if headline.higher_is_better else min)(other for other in measured if other is not None)
    return Text(number(value, headline.decimals), style="bold" if value == best and len(measured) > 1 else "")


def main() -> None:
    """Print the table. If DVC cannot list experiments, the command prints one sentence and exits with code 1."""
    try:
        shown = dvc.api.exp_show()
    except (DvcException, SCMError) as error:
        sys.exit(f"DVC cannot list the experiments: {error}")
    Console().print(table(tries(shown, list(params.read(PARAMS)))))


if __name__ == "__main__":
    main()
