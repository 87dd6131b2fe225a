"""Params of the stage ``report``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Params section ``report``.

    Attributes:
        rows: Number of prompts whose videos are shown.
    """

    rows: int
