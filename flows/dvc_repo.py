"""What DVC knows, without Prefect: the stages in the order of its own graph, and the files a kill can leave broken."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import psutil
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.rwlock import SCHEMA as RWLOCK_SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.scm import SCMError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

CLOCK_STEP = 60.0  # seconds a machine's clock may be put forward while dvc runs


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One DVC stage as a flow needs it."""

    name: str  # DVC's address: what ``dvc repro -s`` takes
    upstream: tuple[str, ...]  # stages whose outs it reads
    metrics: tuple[Path, ...]  # its metrics files, absolute
    gpu: bool
    timeout: float | None  # seconds one attempt may take; None = for ever
    retries: int  # further attempts after a failed one
    has_remote: bool  # DVC has a default remote: what the stage made goes there
    settled: bool  # DVC says that it and all before it are up to date: a second to ask again for each is saved


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a flow in DAG order (of equals, the one written first), and what the flow's records need."""

    stages: tuple[Stage, ...]
    profile: str  # params.yaml's
    git: Mapping[str, str]  # MLflow's tags for the commit and whether files differ from it; empty outside git

    @property
    def changed(self) -> bool:
        """DVC says that at least one stage is not up to date."""
        return not all(stage.settled for stage in self.stages)


def read_plan(
    root: Path, targets: Sequence[str] | None = None, *, refresh: Callable[[Stage], object] | None = None
) -> Plan:
    """Read from DVC which stages a flow runs, and which of them are up to date.

    Files that DVC only tracks (``.dvc``) are not among the stages.

    Args:
        root: The project's root.
        targets: Names as in ``dvc repro``; None for all of the root's dvc.yaml. Their upstream stages are added.
        refresh: Runs a stage that DVC always counts as changed. It is called for each before DVC is asked about the
            others, which depend on its outputs, and the stage is then up to date.

    Raises:
        ValueError: DVC does not know a target, or the project is no git repository.
    """
    with chdir(root), _opened(root) as repo:
        graph = repo.index.graph  # edges point from a stage to what it depends on
        known = [stage.addressing for stage in repo.index.stages]
        wanted = set()
        for target in targets or ["dvc.yaml"]:
            wanted |= _collect(repo, target, known)
        wanted |= {upstream for stage in wanted for upstream in networkx.descendants(graph, stage)}
        written = {stage: index for index, stage in enumerate(repo.index.stages)}
        upstream_first = graph.subgraph(stage for stage in wanted if stage.cmd).reverse(copy=True)
        remote = bool(repo.config["core"].get("remote"))
        order = list(networkx.lexicographical_topological_sort(upstream_first, key=written.__getitem__))
        fresh = [stage for stage in order if refresh and stage.always_changed]
        for stage in fresh:
            assert refresh is not None
            refresh(_stage(stage, (), has_remote=remote, settled=False))
        others = [stage.addressing for stage in order if stage not in fresh]
        stale = set(repo.status(others)) if others else set()  # DVC takes an empty list for every stage
        stages: dict[str, Stage] = {}
        for stage in order:
            before = sorted(other.addressing for other in upstream_first.predecessors(stage))
            settled = stage.addressing not in stale and all(stages[name].settled for name in before)
            stages[stage.addressing] = _stage(stage, tuple(before), has_remote=remote, settled=settled)
        return Plan(
            stages=tuple(stages.values()),
            profile=repo.params.show()[""]["data"]["params.yaml"]["data"]["profile"],
            git=_git_tags(root),
        )


def _opened(root: Path) -> Repo:
    try:
        return Repo(str(root), _wait_for_lock=True)
    except SCMError as error:
        raise ValueError(f"{root} is no git repository, which DVC needs: run 'git init' there") from error


def repair(root: Path) -> list[str]:
    """Set aside and name the lock files of DVC's that a kill cut short; one is enough for DVC to refuse every command.

    DVC writes ``.dvc/tmp/rwlock`` and ``dvc.lock`` in place. Without dvc.lock, finished stages come back from the run
    cache. The broken files stay in ``.dvc/tmp``. What killed processes hold in a whole rwlock is released.
    """
    temporary = root / ".dvc" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    repaired = []
    with (
        make_lock(str(temporary / "lock"), tmp_dir=str(temporary), wait=True),
        make_lock(str(temporary / RWLOCK_LOCK), tmp_dir=str(temporary), wait=True),
    ):
        for path in (temporary / RWLOCK_FILE, root / "dvc.lock", *sorted(root.glob("*/dvc.lock"))):
            if path.is_file() and not _is_whole(path):
                name = path.relative_to(root).as_posix()
                path.replace(temporary / f"{name.replace('/', '-')}.broken")
                repaired.append(name)
        _release_dead(temporary / RWLOCK_FILE)
    return repaired


def read_metrics(stage: Stage) -> dict[str, Any]:
    """The content of the stage's metrics files; of several, the later ones win."""
    metrics: dict[str, Any] = {}
    for path in stage.metrics:
        metrics |= json.loads(path.read_text(encoding="utf-8"))
    return metrics


def _release_dead(path: Path) -> None:
    """Take the entries of processes that are gone out of DVC's rwlock.

    DVC asks only whether there is a process of that number: one that was killed and not yet waited for, as in a
    container without an init, holds its paths for ever, and so does another one that got the number since.
    """
    if not path.is_file():
        return
    since, held = path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
    write = {name: info for name, info in held.get("write", {}).items() if not _is_gone(info["pid"], since)}
    read = {
        name: left
        for name, infos in held.get("read", {}).items()
        if (left := [info for info in infos if not _is_gone(info["pid"], since)])
    }
    kept = {"write": write, "read": read}
    if kept != {"write": {}, "read": {}} | held:
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(json.dumps(kept), encoding="utf-8")
        beside.replace(path)


def _is_gone(pid: int, since: float) -> bool:
    """Whether the process that was ``pid`` at time ``since`` has ended."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since + CLOCK_STEP
    except psutil.NoSuchProcess:
        return True


def _collect(repo: Repo, target: str, known: Sequence[str]) -> set[Any]:
    try:
        return set(repo.stage.collect(target))
    except DvcException as error:
        raise ValueError(f"targets: {target!r} is no stage; choose from {', '.join(known)}") from error


def _stage(stage: Any, upstream: tuple[str, ...], *, has_remote: bool, settled: bool) -> Stage:
    meta = stage.meta or {}
    return Stage(
        name=stage.addressing,
        upstream=upstream,
        metrics=tuple(Path(out.fs_path) for out in stage.outs if out.metric),
        gpu=bool(meta.get("gpu", False)),
        timeout=meta.get("timeout"),
        retries=meta.get("retries", 0),
        has_remote=has_remote,
        settled=settled,
    )


def _git_tags(root: Path) -> dict[str, str]:
    # Not through DVC: its git cannot read a repository without commits.
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git_dirty": str(bool(changes)).lower()}


def _is_whole(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if path.name == RWLOCK_FILE:
            RWLOCK_SCHEMA(json.loads(text))
        else:
            COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except (ValueError, YAMLError, Invalid):
        return "<<<<<<<" in text  # an unfinished merge is the user's to finish
    return True
