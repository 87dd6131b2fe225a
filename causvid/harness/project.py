"""Find the project folder, also for a stage that DVC runs in the temporary folder of an experiment."""

from __future__ import annotations

import os
from pathlib import Path

EXPERIMENTS = (".dvc", "tmp", "exps")  # folder in which 'dvc exp run --temp' and '--queue' check out a commit


def project_root(folder: Path) -> Path:
    """Find the project that the folder ``folder`` belongs to.

    ``dvc exp run --temp`` and ``--queue`` run stages in a temporary copy of the files that git tracks, and DVC deletes
    this copy. Runs in MLflow, unfinished work, environments and untracked inputs must be in the project itself.

    Args:
        folder: The folder in which a stage runs.

    Returns:
        The root of the project that started the experiment; ``folder`` if there is no experiment.
    """
    absolute = folder.absolute()
    for parent in absolute.parents:
        if parent.parts[-3:] == EXPERIMENTS:
            return parent.parents[2]
    return folder


def work_root(folder: Path) -> Path:
    """Find the folder of unfinished work: ``CAUSVID_WORK_DIR``, or ``.work`` in the project."""
    return Path(os.environ.get("CAUSVID_WORK_DIR") or project_root(folder) / ".work")


def refuse_unusable(root: Path) -> None:
    """Refuse a project folder in which DVC would fail later with an unclear message.

    Args:
        root: Root of the project.

    Raises:
        ValueError: ``data`` is a link, or the path of the project has braces.
    """
    if "{" in str(root) or "}" in str(root):  # DVC puts the path into a format string
        raise ValueError(f"the project's folder is {root}, and DVC fails on a path with braces: rename the folder")
    data = root / "data"
    if data.is_symlink():
        raise ValueError(
            f"data is a link to {data.readlink()}, but DVC requires outputs inside the project: replace the link by a "
            "folder, and move DVC's cache to the other disk ('dvc cache dir', 'dvc config cache.type symlink')"
        )
