"""Where MLflow keeps its runs: the URI of the store, a client for it, and the experiments.

As a command, ``python -m causvid.runtime.mlflow_store``, it creates the store of this project if there is none, and
prints its URI, for ``mlflow server --backend-store-uri``.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from causvid.runtime.project import project_root

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
BEING_MADE = 20.0  # seconds for which a file with incomplete tables, once written to, is left to its writer


class StoreError(ValueError):
    """The store cannot be used as it is."""


def sqlite_uri(path: Path) -> str:
    """The URI of an sqlite store in file ``path``, with the escapes that SQLAlchemy takes back.

    The driver is named because MLflow takes what follows ``sqlite:///`` for a path, escapes included, and creates the
    folder of that name.
    """
    from sqlalchemy import URL

    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string()


def own_uri(root: Path) -> str:
    """The URI of the own store of the project in ``root``, its ``mlflow.db``. It is absolute: no cwd can change it."""
    return sqlite_uri(project_root(root.resolve()) / "mlflow.db")


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the URI of the project's own store."""
    return os.environ.get(VARIABLE) or own_uri(root)


def client(uri: str) -> MlflowClient:
    """A client for ``uri``, with MLflow's telemetry off. An sqlite store is created if there is none.

    Raises:
        StoreError: An sqlite store has the schema of another version of MLflow. MLflow would upgrade an older one
            without being asked, if it lacks a table.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    path = _sqlite_path(uri)
    if path is not None:
        _prepare(path, uri)
    return MlflowClient(tracking_uri=uri)


def experiment_id(api: MlflowClient, uri: str, profile: str, root: Path) -> str:
    """The id of the experiment ``causvid/<profile>``, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    name = f"causvid/{profile}"
    found = api.get_experiment_by_name(name)
    if found is None:
        # A server decides by itself where artifacts are. Of a plain path MLflow would decode escapes that are none.
        place = None if uri.startswith("http") else (project_root(root.resolve()) / "mlruns" / name).as_uri()
        try:
            return str(api.create_experiment(name, artifact_location=place))
        except MlflowException:  # another stage may have created it in the meantime
            found = api.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _sqlite_path(uri: str) -> Path | None:
    """The file of a store, None for a store that is no plain file."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    url = make_url(uri)
    return Path(url.database) if url.database and url.database != ":memory:" and not url.query else None


def _prepare(path: Path, uri: str) -> None:
    """Create the store in file ``path`` if there is none; check the schema of one that is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock") as lock:
            if not path.exists():
                _create(path)
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it finds the store
    while (schema := _schema(path)) != _own_schema() and time.time() - path.stat().st_mtime < BEING_MADE:
        time.sleep(0.5)  # another process, MLflow's server for example, may be creating the tables
    if schema not in (None, _own_schema()):
        raise StoreError(
            f"{path} has schema {schema}, and this version of MLflow needs {_own_schema()}; use the version of MLflow "
            f"that wrote it, or keep a copy of the file and run: mlflow db upgrade '{uri}'"
        )


def _create(path: Path) -> None:
    """Create the store beside ``path`` and put it in place when it is whole.

    Another process, MLflow's server for example, thus finds no store or a complete one. Creating it takes seconds.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        store = SqlAlchemyStore(sqlite_uri(beside), (path.parent / "mlruns").absolute().as_uri())
        store.engine.dispose()
        try:
            os.link(beside, path)  # a rename would replace a file that has come into being meanwhile
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            beside.rename(path)
    finally:
        for suffix in ("", "-journal"):
            beside.with_name(beside.name + suffix).unlink(missing_ok=True)


def _schema(path: Path) -> str | None:
    """The version of the schema in an sqlite file; None for a file without tables."""
    there = f"{path.absolute().as_uri()}?mode=rw"  # never creates a file
    with closing(sqlite3.connect(there, timeout=5, uri=True)) as database:
        if not database.execute("select * from sqlite_master").fetchone():
            return None
        if not database.execute("select * from sqlite_master where name = 'alembic_version'").fetchone():
            return "unknown"
        return str((database.execute("select version_num from alembic_version").fetchone() or ["unknown"])[0])


@cache
def _own_schema() -> str:
    """The version of the schema that this version of MLflow needs."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def main() -> None:
    """Create this project's store if there is none, and print its URI."""
    named = os.environ.get(VARIABLE, "")
    uri = named if named and not named.startswith("http") else own_uri(Path.cwd())
    with suppress(Exception):  # the server that is started next says it in its own words
        client(uri)
    print(uri)


if __name__ == "__main__":
    main()
