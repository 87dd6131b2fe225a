"""Give each test an MLflow database. The database is a copy, because creating a database takes seconds."""

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
    """Return the path of an MLflow database with tables and without runs."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_store.client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLFLOW_TRACKING_URI to a separate database for this test, without a parent run, and return the URI.

    At the end of a stage, this process sends the records of the stage, because starting a sender process takes seconds.
    """
    shutil.copy(migrated_database, tmp_path / "own.db")
    uri = f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv(tracking.PARENT_VARIABLE, raising=False)
    monkeypatch.setattr(tracking, "sending", send_here)
    return uri


@contextmanager
def send_here(journal: Journal, root: Path) -> Iterator[None]:
    """Replace ``sending``. This process sends all records of a journal at the end of the context."""
    ended = threading.Event()
    ended.set()
    try:
        yield
    finally:
        sender.follow(journal, root, ended, sender.Complaint(journal))
