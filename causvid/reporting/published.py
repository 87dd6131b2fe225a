"""Numbers that other people published, from data/inputs/published.yaml, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from causvid import params


@dataclass(frozen=True, kw_only=True)
class Source:
    """Who published a number."""

    name: str
    citation: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A published speed: seconds to the first frame, frames per second; ``like`` is our row (teacher, student)."""

    model: str
    like: str
    first_frame_s: float
    fps: float
    source: str
    table: str
    setting: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Published VBench groups in percent; ``like`` is the model of ours beside it, ``row`` the row of our Table 4."""

    model: str
    like: str | None
    row: str | None
    temporal: float
    frame: float
    text: float
    source: str
    table: str


@dataclass(frozen=True, kw_only=True)
class VBench:
    """Published VBench totals in percent."""

    model: str
    like: str
    total: float
    quality: float
    semantic: float
    source: str
    table: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """data/inputs/published.yaml."""

    sources: dict[str, Source]
    latency: tuple[Latency, ...]
    quality: tuple[Quality, ...]
    vbench: tuple[VBench, ...]

    def __post_init__(self) -> None:
        rows: list[Latency | Quality | VBench] = [*self.latency, *self.quality, *self.vbench]
        for row in rows:
            if row.source not in self.sources:
                raise ValueError(
                    f"{row.model} names the source {row.source!r}; known: {', '.join(sorted(self.sources))}"
                )

    def cite(self, row: Latency | Quality | VBench) -> str:
        """Where ``row`` stands: who, and in which table."""
        return f"{self.sources[row.source].name}, {row.table}"


def read_published(path: Path) -> Published:
    """The published numbers. Raises ValueError naming the field that is wrong or the source that is missing."""
    return params.build(Published, YAML(typ="safe").load(path), name=path.name)
