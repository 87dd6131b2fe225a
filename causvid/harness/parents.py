"""Begin the parent runs in MLflow, and end the runs of killed processes.

The parent of a stage's run is the run of a ``dvc repro``, of a DVC experiment or of a flow. A parent run has a
separate journal. The first stage of a ``dvc repro`` begins the parent run, and each stage ends it, because DVC runs no
command at its own end. A flow begins and ends its run itself.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from causvid import params as params_file
from causvid.harness.journal import FOLDER, Header, Journal, Run, now
from causvid.harness.mlflow_store import VARIABLE
from causvid.harness.processes import Owner, dvc_above
from causvid.harness.project import work_root

FOLDERS = ("parents", "runs")  # work folder of the journals
VALUE_LIMIT = 6000  # maximum number of characters that MLflow stores of a parameter
NAMED = 3  # number of changed params in the name of a run
SHOWN, NAME_LIMIT = 24, 240  # maximum numbers of characters of a value in a name, and of a name
# Changes of these tracked files are not changes of code or params. A run itself writes all of them but the texts.
NOT_DIRTY = ("dvc.lock", "*/dvc.lock", "reports/*", "ablation/evaluate/*", "docs/*", "*.md")


def journal_of(token: str, root: Path) -> Journal | None:
    """Return the journal of the parent run with the token ``token``; None if this project did not begin the run."""
    journal = Journal(work_root(root).resolve().joinpath(*FOLDERS, FOLDER, token))
    return journal if journal.exists else None


def begin_repro(profile: str, root: Path) -> Journal | None:
    """Return the journal of the run of the dvc process that started this stage; None if no dvc process did.

    The first stage begins the run. The queue of DVC runs several experiments in one process, so that the name of the
    experiment is a part of the token.
    """
    owner, experiment = dvc_above(), os.environ.get("DVC_EXP_NAME", "")
    if owner is None:
        return None
    token = f"{owner.host}:{owner.pid}@{owner.started:.2f}" + (f":{experiment}" if experiment else "")
    command = f"dvc exp run --name {experiment}" if experiment else "dvc repro"
    return journal_of(token, root) or _begin(token, command, profile, owner, {}, root)


def begin_flow(flow: str, root: Path, owner: Owner, tags: Mapping[str, str]) -> str:
    """Begin the run of the flow ``flow``, which the process ``owner`` runs, and return the token of the run."""
    token, profile = uuid.uuid4().hex, str(params_file.read(root / "params.yaml")["profile"])
    _begin(token, f"flow {flow}", profile, owner, tags, root)
    return token


def _begin(token: str, command: str, profile: str, owner: Owner, tags: Mapping[str, str], root: Path) -> Journal:
    """Create the journal of a parent run. MLflow creates the run together with the run of its first stage."""
    values, changes = _read(root / "params.yaml"), changed_params(profile, root)
    experiment, git = os.environ.get("DVC_EXP_NAME", ""), git_tags(root)
    known = {"profile": profile, "seed": str(values.get("seed", "")), "dvc_experiment": experiment, "host": owner.host}
    # MLflow's table has columns for the user, for the source (the command), and for the commit.
    known |= {"mlflow.user": _user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    named = {name: value for name, value in known.items() if value}
    run = Run(
        token=token,
        name=run_name(profile, changes, experiment),
        profile=profile,
        tags={**tags, **git, **named},
        started=now(),
    )
    header = Header(run=run, parent=None, store=os.environ.get(VARIABLE) or None, needs_child=True)
    journal = Journal.begin(work_root(root).joinpath(*FOLDERS), header)
    journal.append("running", owner=owner)
    journal.append("params", values={name: str(value)[:VALUE_LIMIT] for name, value in changes.items()})
    journal.append("note", part="run", text=_note(command, profile, changes, git))
    return journal


def end_killed(found: Sequence[Journal]) -> None:
    """End the runs whose process on this host has ended without ending its run, as after SIGKILL.

    Args:
        found: All journals of the project. The runs of stages are before their parent runs.
    """
    for journal in found:
        with suppress(FileNotFoundError):  # another process has just sent and removed the journal
            last, parent = journal.last(), journal.header.needs_child
            if journal.is_finished or last.owner is None or not Owner(*last.owner).has_ended:
                continue
            if last.status == "RUNNING":
                above = [it for it in found if last.parent and it.folder.name == last.parent.token]
                for ended in (journal, *above):
                    ended.append("end", status="KILLED", time=max(last.time, ended.last().time))  # after its events
            if parent:  # the run of a stage may continue
                journal.finish()


def run_name(profile: str, changes: Mapping[str, Any], experiment: str) -> str:
    """Return the name of a parent run: the profile, the params that differ, and DVC's name of the experiment."""
    shown = [f"{name}={_short(value)}" for name, value in list(changes.items())[:NAMED]]
    more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return " · ".join(part for part in (profile, ", ".join(shown) + more, experiment) if part)[:NAME_LIMIT]


def changed_params(profile: str, root: Path) -> dict[str, Any]:
    """Return the params in params.yaml that differ from the profile, keyed by dotted name.

    The mapping is empty if ``root`` has no such files.
    """
    base, values = _read(root / "profiles" / f"{profile}.yaml"), _read(root / "params.yaml")
    if not base:
        return {}
    before = dict(flatten(base))
    absent = object()
    return {name: value for name, value in flatten(values) if before.get(name, absent) != value}


def git_tags(root: Path) -> dict[str, str]:
    """Return the commit, and whether tracked code or params differ from it; an empty mapping without a commit."""
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    paths = [".", *(f":(exclude){pattern}" for pattern in NOT_DIRTY)]
    asked = [*git, "status", "--porcelain", "-uno", "--", *paths]
    dirty = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git_dirty": str(bool(dirty.strip())).lower()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a params file; an empty mapping if it cannot be read, which a stage reports itself."""
    with suppress(ValueError):
        return params_file.read(path)
    return {}


def _short(value: Any) -> str:
    written = str(value)
    return written if len(written) <= SHOWN else f"{written[: SHOWN - 1]}…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return str(os.getuid())


def _note(command: str, profile: str, changes: Mapping[str, Any], git: Mapping[str, str]) -> str:
    """Return Markdown for the page of the run: the params that differ from the profile, and how to repeat the run."""
    written = [
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in changes.items()
    ]
    said = f" with {', '.join(f'`{it}`' for it in written)}" if written else ""
    commit = git.get("mlflow.source.git.commit", "")
    again = f"git checkout {commit[:12]}\n" if commit else ""
    again += f"dvc exp run {' '.join(f'-S {shlex.quote(it)}' for it in written)}\n" if written else "dvc repro\n"
    changed = ". The working tree had changes of code or params" if git.get("git_dirty") == "true" else ""
    return (
        f"`{command}` of the profile `{profile}`{said}{changed}. The child runs are the stages that were executed.\n\n"
        f"The same again:\n```\n{again}```\n"
    )
