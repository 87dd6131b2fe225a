"""Arrange the tables of the report in sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from causvid.reporting import tables
from causvid.reporting.published import Published
from causvid.reporting.tables import Results, Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report.

    Attributes:
        name: Id of the section on the HTML page.
        title: Heading.
        tables: Tables that the page shows.
        folded: Tables that the page shows after a click on their title.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()


def sections(results: Results, ablation: Mapping[str, Mapping[str, Any]], published: Published) -> tuple[Section, ...]:
    """Return all sections of the report, in the order of the page. Tables without rows are left out.

    Args:
        results: Metrics of the stages.
        ablation: Maps each value of ``train_dmd.inputs`` to Table 4; empty if the ablation was not run.
        published: Published numbers.
    """
    best, *others = tables.TABLE4
    table4 = [
        tables.table4(ablation.get(name), name, published) for name in (best, *others) if name in (best, *ablation)
    ]
    claims = [tables.claims(values, inputs) for inputs, values in ablation.items()]
    skipped = tables.vbench_skipped(results)
    return (
        Section(name="videos", title="Same prompt, same noise"),
        Section(
            name="scores",
            title="Scores",
            tables=_filled([tables.beside_paper(results, published)]),
            folded=_filled([tables.quality(results), tables.floors(results)]),
        ),
        Section(name="speed", title="Speed", tables=_filled([tables.latency(results, published)])),
        Section(name="rollouts", title="Long rollouts of the causal models", tables=_filled([tables.drift(results)])),
        Section(
            name="table4",
            title="Table 4 and Figure 4",
            tables=tuple(table4[:1]),
            folded=_filled([*table4[1:], *claims]),
        ),
        Section(
            name="vbench",
            title="VBench",
            tables=_filled([tables.vbench(results)]),
            folded=_filled([skipped, tables.published_vbench(published)]),
        ),
        Section(
            name="training",
            title="Training and data",
            folded=_filled([tables.training(results), tables.data(results)]),
        ),
    )


def _filled(candidates: Iterable[Table]) -> tuple[Table, ...]:
    return tuple(table for table in candidates if table.rows)
