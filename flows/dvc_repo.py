"""Read the stages of a flow, in the order of DVC's graph, and their status from DVC, and repair DVC's lock files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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

CLOCK_STEP = 60.0  # seconds by which the clock of the machine may be set forward while dvc runs


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The properties of a DVC stage that a flow needs.

    Attributes:
        name: DVC's address of the stage, as in ``dvc repro -s``.
        upstream: Names of the stages on whose outs the stage depends.
        gpu: Whether the stage needs the GPUs.
        timeout: Limit of one attempt in seconds; None = no limit.
        retries: Number of attempts after the first one fails.
        has_remote: Whether DVC has a default remote, to which the outs are pushed.
        settled: Whether DVC reports the stage and all upstream stages as up to date. The flow then does not start
            ``dvc repro``, which takes a second.
    """

    name: str
    upstream: tuple[str, ...]
    gpu: bool
    timeout: float | None
    retries: int
    has_remote: bool
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a flow.

    Attributes:
        stages: The stages in topological order. Independent stages have the order of dvc.yaml.
    """

    stages: tuple[Stage, ...]

    @property
    def changed(self) -> bool:
        """Whether at least one stage is not up to date."""
        return not all(stage.settled for stage in self.stages)


def read_plan(
    root: Path, targets: Sequence[str] | None = None, *, refresh: Callable[[Stage], object] | None = None
) -> Plan:
    """Read from DVC which stages a flow runs, and which of these stages are up to date.

    ``.dvc`` files are not included in the stages.

    Args:
        root: The project's root.
        targets: Names of stages, as in ``dvc repro``; None = all stages in the dvc.yaml of the root. Upstream stages of
            the targets are added.
        refresh: A function that runs a stage. This function is called for every stage that DVC always regards as
            changed. The status of the other stages is read afterwards, because it depends on the outs of these stages.

    Raises:
        ValueError: DVC does not know a target, or the project is not a git repository.
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
        stale = set(repo.status(others)) if others else set()  # an empty list would mean all stages
        stages: dict[str, Stage] = {}
        for stage in order:
            before = sorted(other.addressing for other in upstream_first.predecessors(stage))
            settled = stage.addressing not in stale and all(stages[name].settled for name in before)
            stages[stage.addressing] = _stage(stage, tuple(before), has_remote=remote, settled=settled)
        return Plan(stages=tuple(stages.values()))


def _opened(root: Path) -> Repo:
    try:
        return Repo(str(root), _wait_for_lock=True)
    except SCMError as error:
        raise ValueError(f"{root} is not a git repository, which DVC needs: run 'git init' there") from error


def repair(root: Path) -> list[str]:
    """Move incomplete lock files of DVC to ``.dvc/tmp``, and release the locks of killed processes.

    DVC writes ``.dvc/tmp/rwlock`` and ``dvc.lock`` in place, so that a file can be incomplete after a process was
    killed. DVC then rejects every command. Without dvc.lock, DVC restores finished stages from its run cache.

    Returns:
        The files that were moved, relative to ``root``.
    """
    temporary = root / ".dvc" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    repaired = []
    with (
        make_lock(str(temporary / "lock"), tmp_dir=str(temporary), wait=True),
        make_lock(str(temporary / RWLOCK_LOCK), tmp_dir=str(temporary), wait=True),
    ):
        for path in (temporary / RWLOCK_FILE, root / "dvc.lock", *sorted(root.glob("*/dvc.lock"))):
            if path.is_file() and not _is_valid(path):
                name = path.relative_to(root).as_posix()
                path.replace(temporary / f"{name.replace('/', '-')}.broken")
                repaired.append(name)
        _release_dead(temporary / RWLOCK_FILE)
    return repaired


def _release_dead(path: Path) -> None:
    """Remove the entries of ended processes from DVC's rwlock.

    DVC checks only whether a process with the pid exists. Two kinds of processes would therefore lock paths
    permanently: a zombie, which may never be reaped in a container without an init process, and an unrelated process
    with the same pid.
    """
    if not path.is_file():
        return
    since, held = path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
    write = {name: info for name, info in held.get("write", {}).items() if not _has_ended(info["pid"], since)}
    read = {
        name: remaining
        for name, infos in held.get("read", {}).items()
        if (remaining := [info for info in infos if not _has_ended(info["pid"], since)])
    }
    kept = {"write": write, "read": read}
    if kept != {"write": {}, "read": {}} | held:
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(json.dumps(kept), encoding="utf-8")
        beside.replace(path)


def _has_ended(pid: int, since: float) -> bool:
    """Return whether the process that had the ``pid`` at time ``since`` (seconds since the epoch) has ended."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since + CLOCK_STEP
    except psutil.NoSuchProcess:
        return True


def _collect(repo: Repo, target: str, known: Sequence[str]) -> set[Any]:
    try:
        return set(repo.stage.collect(target))
    except DvcException as error:
        raise ValueError(f"targets: {target!r} is not a stage; choose from {', '.join(known)}") from error


def _stage(stage: Any, upstream: tuple[str, ...], *, has_remote: bool, settled: bool) -> Stage:
    meta = stage.meta or {}
    return Stage(
        name=stage.addressing,
        upstream=upstream,
        gpu=bool(meta.get("gpu", False)),
        timeout=meta.get("timeout"),
        retries=meta.get("retries", 0),
        has_remote=has_remote,
        settled=settled,
    )


def _is_valid(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if path.name == RWLOCK_FILE:
            RWLOCK_SCHEMA(json.loads(text))
        else:
            COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except (ValueError, YAMLError, Invalid):
        return "<<<<<<<" in text  # the user must resolve a merge conflict
    return True
