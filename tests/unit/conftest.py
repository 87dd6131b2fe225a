"""One migrated MLflow database a session, copied for each test: making one costs seconds."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from causvid.harness import mlflow_store, sender, tracking
from causvid.harness.journal import Journal


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database with its tables."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_store.client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of this test's own, which MLFLOW_TRACKING_URI names; no parent run is handed down.

    What a stage logs is sent at its end and in this process, which saves the seconds that another one needs to begin.
    """
    shutil.copy(migrated_database, tmp_path / "own.db")
    uri = f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv(tracking.PARENT_VARIABLE, raising=False)
    monkeypatch.setattr(tracking, "sending", send_here)
    return uri


@contextmanager
def send_here(journal: Journal, root: Path) -> Iterator[None]:
    """Stands for ``sending``."""
    ended = threading.Event()
    ended.set()
    try:
        yield
    finally:
        sender.follow(journal, root, ended, sender.Complaint(journal))
