"""One migrated MLflow database a session, copied for each test: making one costs seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from causvid.runtime import tracking


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database with its tables."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of this test's own, which MLFLOW_TRACKING_URI names; no parent run is handed down."""
    shutil.copy(migrated_database, tmp_path / "own.db")
    uri = f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv(tracking.PARENT_VARIABLE, raising=False)
    return uri
