"""Read the stages of a flow, in the order of DVC's graph, and their status from DVC, and repair DVC's lock files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
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
        name: The address, after the path of dvc.yaml if the stage is not in the DVC project of the root.
        address: DVC's address of the stage in its project, as in ``dvc repro -s``.
        project: The folder of the stage's DVC project.
        upstream: Names of the stages on whose outs the stage depends.
        outs: Absolute paths of the outputs.
        gpu: Whether the stage needs the GPUs.
        timeout: Limit of one attempt in seconds; None = no limit.
        retries: Number of attempts after the first one fails.
        has_remote: Whether DVC has a default remote, to which the outs are pushed.
        settled: Whether DVC reports the stage and all upstream stages as up to date. The flow then does not start
            ``dvc repro``, which takes a second.
    """

    name: str
    address: str
    project: Path
    upstream: tuple[str, ...]
    outs: tuple[Path, ...]
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
            the targets are added. ``FOLDER/dvc.yaml`` and ``FOLDER/dvc.yaml:STAGE`` are stages of a second DVC project
            in a folder of the root.
        refresh: A function that runs a stage. This function is called for every stage that DVC always regards as
            changed. The status of the other stages is read afterwards, because it depends on the outs of these stages.

    Raises:
        ValueError: DVC does not know a target, or the project is not a git repository.
    """
    wanted: dict[Path, list[str]] = {root: []}
    for target in targets or ["dvc.yaml"]:
        project, name = _locate(root, target)
        wanted.setdefault(project, []).append(name)
    for project in set(wanted) - {root}:
        wanted[root] += _makers(root, project, wanted[project])
    stages: dict[str, Stage] = {}
    for project, names in wanted.items():
        if names:
            _add(stages, root, project, names, refresh)
    return Plan(stages=tuple(stages.values()))


def _locate(root: Path, target: str) -> tuple[Path, str]:
    """Return the DVC project of a target, and the target as this project names it."""
    file, _, stage = target.rpartition(":")
    folder = root / Path(file or target).parent
    if folder != root and (folder / ".dvc").is_dir():
        return folder, stage if file else "dvc.yaml"
    return root, target


def _makers(root: Path, project: Path, targets: Sequence[str]) -> list[str]:
    """Return the stages of ``root`` that write a dependency of the stages ``targets`` of ``project``."""
    with chdir(project), _opened(project) as repo:
        read = {Path(dep.fs_path) for stage in _wanted(repo, targets) for dep in stage.deps}
    with chdir(root), _opened(root) as repo:
        outs = {stage.addressing: [Path(out.fs_path) for out in stage.outs] for stage in repo.index.stages if stage.cmd}
    return [name for name, written in outs.items() if _overlap(read, written)]


def _overlap(some: Iterable[Path], others: Iterable[Path]) -> bool:
    """Return whether a path in ``some`` is a path in ``others``, contains one, or is in one."""
    return any(one.is_relative_to(two) or two.is_relative_to(one) for one in some for two in others)


def _wanted(repo: Repo, targets: Sequence[str]) -> set[Any]:
    """Return the stages ``targets`` and their upstream stages in the same DVC project."""
    known = [stage.addressing for stage in repo.index.stages]
    wanted = set().union(*(_collect(repo, target, known) for target in targets))
    return wanted | {upstream for stage in wanted for upstream in networkx.descendants(repo.index.graph, stage)}


def _add(
    stages: dict[str, Stage],
    root: Path,
    project: Path,
    targets: Sequence[str],
    refresh: Callable[[Stage], object] | None,
) -> None:
    """Add the stages ``targets`` of ``project``, and their upstream stages, to ``stages``, keyed by name.

    If ``project`` is not ``root``, ``stages`` contains the stages of ``root`` on which the targets depend.
    """
    prefix = "" if project == root else f"{project.relative_to(root).as_posix()}/dvc.yaml:"
    above = tuple(stages.values())
    with chdir(project), _opened(project) as repo:
        # edges of the graph point from a stage to what it depends on
        graph = repo.index.graph.subgraph(stage for stage in _wanted(repo, targets) if stage.cmd).reverse(copy=True)
        written = {stage: index for index, stage in enumerate(repo.index.stages)}
        remote = bool(repo.config["core"].get("remote"))
        order = list(networkx.lexicographical_topological_sort(graph, key=written.__getitem__))
        fresh = [stage for stage in order if refresh and stage.always_changed]
        for stage in fresh:
            assert refresh is not None
            refresh(_stage(stage, prefix, project, (), has_remote=remote, settled=False))
        others = [stage.addressing for stage in order if stage not in fresh]
        stale = set(repo.status(others)) if others else set()  # an empty list would mean all stages
        for stage in order:
            read = [Path(dep.fs_path) for dep in stage.deps]
            before = sorted(f"{prefix}{other.addressing}" for other in graph.predecessors(stage))
            before += [other.name for other in above if _overlap(read, other.outs)]
            settled = stage.addressing not in stale and all(stages[name].settled for name in before)
            new = _stage(stage, prefix, project, tuple(before), has_remote=remote, settled=settled)
            stages[new.name] = new


def _opened(root: Path) -> Repo:
    try:
        return Repo(str(root), _wait_for_lock=True)
    except SCMError as error:
        raise ValueError(f"{root} is not a git repository, which DVC needs: run 'git init' there") from error


def repair(root: Path) -> list[str]:
    """Move incomplete lock files of DVC to ``.dvc/tmp``, and release the locks of killed processes.

    DVC writes ``.dvc/tmp/rwlock`` and ``dvc.lock`` in place, so that a file can be incomplete after a process was
    killed. DVC then rejects every command. Without dvc.lock, DVC restores finished stages from its run cache.

    Args:
        root: The project's root. DVC projects in its folders are repaired, too.

    Returns:
        The files that were moved, relative to ``root``.
    """
    projects = [root, *(folder.parent for folder in sorted(root.glob("*/.dvc")))]
    return [path.relative_to(root).as_posix() for project in projects for path in _repair(project)]


def _repair(project: Path) -> list[Path]:
    """Repair one DVC project as ``repair`` describes, and return the files that were moved."""
    temporary = project / ".dvc" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    repaired = []
    with (
        make_lock(str(temporary / "lock"), tmp_dir=str(temporary), wait=True),
        make_lock(str(temporary / RWLOCK_LOCK), tmp_dir=str(temporary), wait=True),
    ):
        for path in (temporary / RWLOCK_FILE, project / "dvc.lock"):
            if path.is_file() and not _is_valid(path):
                name = path.relative_to(project).as_posix()
                path.replace(temporary / f"{name.replace('/', '-')}.broken")
                repaired.append(path)
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


def _stage(
    stage: Any, prefix: str, project: Path, upstream: tuple[str, ...], *, has_remote: bool, settled: bool
) -> Stage:
    meta = stage.meta or {}
    return Stage(
        name=f"{prefix}{stage.addressing}",
        address=stage.addressing,
        project=project,
        upstream=upstream,
        outs=tuple(Path(out.fs_path) for out in stage.outs),
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
