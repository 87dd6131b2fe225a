"""Separate the tests of the stage's surroundings from each other."""

from __future__ import annotations

import pytest

from causvid.harness import progress


@pytest.fixture(autouse=True)
def no_earlier_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the interrupted work of other tests, whose errors pytest keeps."""
    monkeypatch.setattr(progress, "_open", [])
    monkeypatch.setattr(progress, "_interrupted", [])
