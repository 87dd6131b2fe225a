"""Print the last block of a run: its duration, the six scores beside those of the previous run, and the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from causvid.harness.lines import busy, lasting
from causvid.harness.project import work_root
from causvid.harness.tracking import PARENT_VARIABLE
from causvid.reporting.summary import SCORES, values
from causvid.reporting.tables import read_results
from causvid.runtime.files import write_json

HISTORY = "runs.json"  # maps a profile to the scores of its last two runs, in the folder of unfinished work
COMMAND = "CAUSVID_COMMAND"  # set by a command that prints the block itself after all stages

Scores = Mapping[str, float]


def say(reports: Path, page: Path, profile: str) -> None:
    """Print the block in the stage ``report``, unless a command or a flow runs this ``dvc repro``."""
    if "DVC_STAGE" in os.environ and not {COMMAND, PARENT_VARIABLE} & os.environ.keys():
        dvc = psutil.Process(os.getppid())
        print(block(reports, page, profile, time.time() - dvc.create_time()), flush=True)


def block(reports: Path, page: Path, profile: str, seconds: float) -> str:
    """Return the block, and store the scores for the block of the next run.

    Args:
        reports: Folder of the stages' metrics.
        page: Path of the report.
        profile: Name of the profile. Scores are compared with the previous run of the same profile.
        seconds: Duration of the run.
    """
    now = values(read_results(reports), SCORES)
    before = _previous(work_root(Path.cwd()) / HISTORY, profile, now) if now else {}
    rows = [
        f"  {each.label:18s}{_shown(now, each.name, each.decimals):>10s}{_shown(before, each.name, each.decimals):>10s}"
        f"{'' if each.higher_is_better else '   lower is better'}"
        for each in SCORES
    ]
    head = f"\n{profile}: {lasting(seconds)}{busy()}\n  {'student':18s}{'now':>10s}{'before':>10s}"
    return "\n".join([head, *rows, f"report: {page}" if page.is_file() else "no report yet"])


def _previous(history: Path, profile: str, now: Scores) -> Scores:
    """Return the scores of the run before ``now``, and store ``now``. An empty mapping: there is no earlier run."""
    try:
        runs: dict[str, list[Scores]] = json.loads(history.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        runs = {}
    past = runs.get(profile, [])
    if past[-1:] != [now]:
        past = [*past[-1:], dict(now)]
        write_json(history, {**runs, profile: past})
    return past[-2] if len(past) > 1 else {}


def _shown(scores: Scores, name: str, decimals: int) -> str:
    return f"{scores[name]:.{decimals}f}" if name in scores else "-"
