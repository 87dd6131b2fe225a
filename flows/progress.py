"""Show the progress of a stage as a bar on Prefect's page, from the lines that the stage prints."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError

LINE = re.compile(r"(?P<what>.+): (?P<done>\d+)/(?P<total>[1-9]\d*), \d+ s left(, .+)?")
EVERY = 5.0  # seconds between two updates of a bar


class ProgressBar:
    """A callable that receives the lines of a stage, and creates and updates a progress artifact in Prefect."""

    def __init__(self, stage: str) -> None:
        """Prepare the bar of ``stage``. The key is the name of the stage, in characters that Prefect allows."""
        self.stage, self.key = stage, re.sub("[^a-z0-9]+", "-", f"progress {stage}".lower())
        self.artifact: UUID | None = None
        self.moved = float("-inf")

    def __call__(self, line: str) -> None:
        """Update the bar if ``line`` reports progress. If the server does not answer, the update is dropped."""
        match = LINE.fullmatch(line)
        if match and time.monotonic() - self.moved >= EVERY:
            self._move(min(100.0, 100 * int(match["done"]) / int(match["total"])), match["what"])

    def done(self) -> None:
        """Set the bar to 100 %."""
        if self.artifact:
            self._move(100.0, "")

    def _move(self, percent: float, what: str) -> None:
        self.moved = time.monotonic()
        with suppress(httpx.HTTPError, PrefectHTTPStatusError):
            if self.artifact:
                update_progress_artifact(self.artifact, progress=percent)
            else:
                artifact = create_progress_artifact(percent, key=self.key, description=f"{self.stage}: {what}")
                assert isinstance(artifact, UUID)
                self.artifact = artifact
