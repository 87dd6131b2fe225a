"""Find or create the MLflow store of a project, its client and its experiments.

``python -m causvid.harness.mlflow_store`` creates the store of this project if the store does not exist. It prints the
URI of the store for ``mlflow server --backend-store-uri``, and the address of the table of runs on the server.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from causvid import params as params_file
from causvid.harness import runs_table
from causvid.harness.project import project_root

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
BEING_MADE = 20.0  # maximum seconds since the last write in which another process may still create the tables
# Columns with addresses of artifacts in MLflow's tables.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


class StoreError(ValueError):
    """The store cannot be used."""


def sqlite_uri(path: Path) -> str:
    """Return the URI of an sqlite store in the file ``path``, with special characters escaped for SQLAlchemy.

    The URI names the driver (``sqlite+pysqlite``). From a URI without a driver (``sqlite:///``), MLflow would use the
    escaped path without decoding, and would create a folder with the escaped name.
    """
    from sqlalchemy import URL

    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string()


def own_uri(root: Path) -> str:
    """Return the absolute URI of ``mlflow.db``, the store of the project in ``root``."""
    return sqlite_uri(project_root(root.resolve()) / "mlflow.db")


def tracking_uri(root: Path) -> str:
    """Return ``MLFLOW_TRACKING_URI`` if it is set, otherwise the URI of the project's own store."""
    return os.environ.get(VARIABLE) or own_uri(root)


def client(uri: str) -> MlflowClient:
    """Return a client for the store ``uri``. A missing sqlite store is created.

    Raises:
        StoreError: The sqlite store has the schema of another version of MLflow. If a table is missing, MLflow
            itself would upgrade an older store without confirmation.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    path = _sqlite_path(uri)
    if path is not None:
        _prepare(path, uri)
    return MlflowClient(tracking_uri=uri)


def experiment_id(api: MlflowClient, uri: str, profile: str, root: Path) -> str:
    """Return the id of the experiment ``causvid/<profile>``. A missing experiment is created."""
    from mlflow.exceptions import MlflowException

    name = f"causvid/{profile}"
    found = api.get_experiment_by_name(name)
    if found is None:
        # A server chooses the location of artifacts. In a plain path, MLflow would decode characters such as %41.
        place = None if uri.startswith("http") else (project_root(root.resolve()) / "mlruns" / name).as_uri()
        try:
            return str(api.create_experiment(name, artifact_location=place, tags=runs_table.experiment_tags([])))
        except MlflowException:  # another stage may have created the experiment in the meantime
            found = api.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def set_table(api: MlflowClient, experiment: str, metrics: Sequence[str]) -> None:
    """Let the table of runs of an experiment have columns for ``metrics``, and sort it by the first of them."""
    for name, value in runs_table.experiment_tags(metrics).items():
        api.set_experiment_tag(experiment, name, value)


def _sqlite_path(uri: str) -> Path | None:
    """Return the path of an sqlite store; None for any other store."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    url = make_url(uri)
    return Path(url.database) if url.database and url.database != ":memory:" and not url.query else None


def _prepare(path: Path, uri: str) -> None:
    """Create the store in the file ``path`` if it does not exist; check the schema of an existing store."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock") as lock:
            if not path.exists():
                _create(path)
        Path(lock.lock_file).unlink(missing_ok=True)  # processes that wait for the lock will find the store
    while (schema := _schema(path)) != _own_schema() and time.time() - path.stat().st_mtime < BEING_MADE:
        time.sleep(0.5)  # another process, MLflow's server for example, may be creating the tables
    if schema not in (None, _own_schema()):
        raise StoreError(
            f"{path} has schema {schema}, and this version of MLflow needs {_own_schema()}; use the version of MLflow "
            f"that wrote it, or keep a copy of the file and run: mlflow db upgrade '{uri}'"
        )
    if schema:
        _follow_folder(path)


def _follow_folder(path: Path) -> None:
    """Change the addresses of artifacts in the store ``path`` if its folder was moved or copied together with mlruns.

    MLflow stores absolute addresses. The experiment Default, which exists since the creation of the store, has the
    address of the folder at that time. Addresses in other folders remain.
    """
    here, default = path.parent.resolve().as_uri(), "/mlruns/0"
    with closing(_connect(path)) as database, database:
        for (place,) in database.execute(
            "select artifact_location from experiments where experiment_id = 0"
        ).fetchall():
            before = str(place).removesuffix(default)
            if place in (before, f"{here}{default}") or not (path.parent / "mlruns").is_dir():
                continue
            for table, column in ADDRESSES:
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (here, len(before) + 1, len(before) + 1, f"{before}/"),
                )


def _create(path: Path) -> None:
    """Create the store beside ``path``, and move it to ``path`` when it is complete.

    The creation of the tables takes seconds. Other processes, such as MLflow's server, see no store or all tables.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        store = SqlAlchemyStore(sqlite_uri(beside), (path.parent / "mlruns").resolve().as_uri())
        store.engine.dispose()
        try:
            os.link(beside, path)  # a rename would replace a file that another process created in the meantime
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            beside.rename(path)
    finally:
        for suffix in ("", "-journal"):
            beside.with_name(beside.name + suffix).unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    there = f"{path.absolute().as_uri()}?mode=rw"  # never creates a file
    return sqlite3.connect(there, timeout=5, uri=True)


def _schema(path: Path) -> str | None:
    """Return the version of the schema in an sqlite file; None for a file without tables."""
    with closing(_connect(path)) as database:
        if not database.execute("select * from sqlite_master").fetchone():
            return None
        if not database.execute("select * from sqlite_master where name = 'alembic_version'").fetchone():
            return "unknown"
        return str((database.execute("select version_num from alembic_version").fetchone() or ["unknown"])[0])


@cache
def _own_schema() -> str:
    """Return the version of the schema that this version of MLflow needs."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def main() -> None:
    """Create the store of this project if it does not exist. Print its URI, and the address of the table of runs."""
    named, address = os.environ.get(VARIABLE, ""), ""
    uri = named if named and not named.startswith("http") else own_uri(Path.cwd())
    with suppress(Exception):  # MLflow's server starts next, and reports the error
        api, profile = client(uri), str(params_file.read(Path("params.yaml"))["profile"])
        experiment = experiment_id(api, uri, profile, Path.cwd())
        if runs_table.TAG not in api.get_experiment(experiment).tags:  # an earlier version created the experiment
            set_table(api, experiment, [])
        address = runs_table.address(experiment)
    print(uri, address, sep="\n")


if __name__ == "__main__":
    main()
