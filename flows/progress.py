"""How far a long stage is, on Prefect's page: a bar moved by the lines that stages print."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError

LINE = re.compile(r"(?P<what>.+): (?P<done>\d+)/(?P<total>[1-9]\d*), \d+ s left")
EVERY = 5.0  # seconds between two moves of a bar


class ProgressBar:
    """Called with a stage's lines, it makes an artifact at the first that tells how far it is, and moves it."""

    def __init__(self, stage: str) -> None:
        """Of ``stage``; its key is the name in the characters that Prefect takes."""
        self.stage, self.key = stage, re.sub("[^a-z0-9]+", "-", f"progress {stage}".lower())
        self.artifact: UUID | None = None
        self.moved = float("-inf")

    def __call__(self, line: str) -> None:
        """Look at a line; a server that does not answer misses a move."""
        found = LINE.fullmatch(line)
        if found and time.monotonic() - self.moved >= EVERY:
            self._move(min(100.0, 100 * int(found["done"]) / int(found["total"])), found["what"])

    def done(self) -> None:
        """The stage has come to its end."""
        if self.artifact:
            self._move(100.0, "")

    def _move(self, percent: float, what: str) -> None:
        self.moved = time.monotonic()
        with suppress(httpx.HTTPError, PrefectHTTPStatusError):
            if self.artifact:
                update_progress_artifact(self.artifact, progress=percent)
            else:
                made = create_progress_artifact(percent, key=self.key, description=f"{self.stage}: {what}")
                assert isinstance(made, UUID)
                self.artifact = made
