"""Read published numbers and their sources from data/inputs/published.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from causvid import params


@dataclass(frozen=True, kw_only=True)
class Source:
    """A publication.

    Attributes:
        name: Short name that tables use for citations.
        citation: Full citation.
        url: Address.
    """

    name: str
    citation: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A published speed.

    Attributes:
        model: The published model.
        like: The comparable model of this project, "teacher" or "student".
        first_frame_s: Seconds until the first frame.
        fps: Frames per second.
        passes: Number of forward passes over each frame; None if the source does not state it.
        source: Key of the source.
        table: Table in the source.
        setting: Video size and device of the measurement.
    """

    model: str
    like: str
    first_frame_s: float
    fps: float
    passes: int | None
    source: str
    table: str
    setting: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Published VBench groups in percent.

    Attributes:
        model: The published model.
        like: The comparable model of this project, as a key of ``tables.MODELS``, or None.
        row: The same row in the Table 4 of this project, as a key of ``ablation.ROWS``, or None.
        temporal: Temporal quality.
        frame: Frame-wise quality.
        text: Text alignment.
        source: Key of the source.
        table: Table in the source.
    """

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
    """Published VBench totals in percent. ``Quality`` describes ``model``, ``like``, ``source`` and ``table``."""

    model: str
    like: str
    total: float
    quality: float
    semantic: float
    source: str
    table: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """Content of data/inputs/published.yaml. ``sources`` maps keys to sources."""

    sources: dict[str, Source]
    latency: tuple[Latency, ...]
    quality: tuple[Quality, ...]
    vbench: tuple[VBench, ...]

    def __post_init__(self) -> None:
        rows: list[Latency | Quality | VBench] = [*self.latency, *self.quality, *self.vbench]
        for row in rows:
            if row.source not in self.sources:
                raise ValueError(
                    f"{row.model} has the unknown source {row.source!r}; known: {', '.join(sorted(self.sources))}"
                )

    def cite(self, row: Latency | Quality | VBench) -> str:
        """Return the source and the table of ``row``, for citations."""
        return f"{self.sources[row.source].name}, {row.table}"


def read_published(path: Path) -> Published:
    """Read the published numbers.

    Raises:
        ValueError: A field is wrong or a source is missing. The message names the field or the source.
    """
    return params.build(Published, YAML(typ="safe").load(path), name=path.name)
