"""Run VBench in a separate environment, because VBench requires other package versions than this project.

This process exchanges JSON with the subprocess that runs VBench. A dimension whose weights are missing is skipped; the
reason lists the missing files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from causvid.evaluation import vbench_runner
from causvid.evaluation.config import EvaluateConfig
from causvid.evaluation.vbench_dimensions import ALSO_AT, NEEDS_OWN_PROMPTS, WEIGHTS

RUNNER = Path(vbench_runner.__file__)

START_SECONDS = 600.0  # time limit for the start of VBench
# Time limit per video and dimension. The slowest dimension takes about 340 s for 81 frames of 480p on one CPU thread.
SECONDS_PER_VIDEO = 900.0


@contextmanager
def scoring(
    folder: Path, rows: Sequence[Mapping[str, Any]], config: EvaluateConfig, *, device: str, log: Path
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Score videos with VBench while the body of the ``with`` statement runs.

    VBench is killed when the body ends.

    Args:
        folder: Folder of the videos.
        rows: Rows of the manifest in ``folder``, one for each video to score.
        config: Params section ``evaluate``.
        device: Device of VBench's networks, as a name for ``torch.device``.
        log: File for VBench's output.

    Yields:
        A function that waits for VBench and returns {"version": str or None, "scores": {dimension: float}, "skipped":
        {dimension: reason}}. Every dimension of ``config`` is in ``scores`` or in ``skipped``.
    """
    skipped = {name: reason for name in config.vbench_dimensions if (reason := why_not(name, config))}
    wanted = [name for name in config.vbench_dimensions if name not in skipped]
    if not wanted:
        yield lambda: {"version": None, "scores": {}, "skipped": skipped}
        return
    videos = [{"path": str((folder / row["path"]).absolute()), "prompt": row["caption"]} for row in rows]
    request = {"dimensions": wanted, "device": device, "threads": os.cpu_count() or 1, "videos": videos}
    limit = START_SECONDS + SECONDS_PER_VIDEO * len(wanted) * len(videos)
    with tempfile.TemporaryDirectory() as scratch:
        cache, out = Path(scratch) / "cache", Path(scratch) / "out.json"
        _link_weights(config.vbench_weights, wanted, cache)
        with _running(config.vbench_python, request, cache, out, log, limit) as wait:

            def result() -> dict[str, Any]:
                reason = wait()
                found = json.loads(out.read_text()) if out.is_file() else {"version": None, "scores": {}, "skipped": {}}
                failed = {name: reason for name in wanted if name not in {*found["scores"], *found["skipped"]}}
                return {**found, "skipped": skipped | found["skipped"] | failed}

            yield result


def why_not(dimension: str, config: EvaluateConfig) -> str | None:
    """Return the reason why ``dimension`` cannot be scored here, with the remedy; None if it can be scored."""
    if not config.vbench_python.is_file():
        return "evaluate.vbench_python does not exist: run 'make vbench-env', and then this stage with --force"
    if dimension in NEEDS_OWN_PROMPTS:
        return "needs the labels that come with VBench's own prompts"
    missing = [name for name in WEIGHTS[dimension] if not (config.vbench_weights / name).is_file()]
    return f"evaluate.vbench_weights lacks {', '.join(missing)}" if missing else None


def _link_weights(weights: Path, dimensions: Sequence[str], cache: Path) -> None:
    """Create a cache folder with links to the weights for one run.

    VBench writes into its cache folder, and the user's folder of weights is an input that must not change.
    """
    cache.mkdir()
    for name in {name for dimension in dimensions for name in WEIGHTS[dimension]}:
        for place in {name, ALSO_AT.get(name, name)}:
            link = cache / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((weights / name).resolve())


@contextmanager
def _running(
    python: Path, request: Mapping[str, Any], cache: Path, out: Path, log: Path, seconds: float
) -> Iterator[Callable[[], str]]:
    """Run the subprocess while the body of the ``with`` statement runs.

    Args:
        python: Interpreter of VBench's environment.
        request: Request in the format of ``vbench_runner``.
        cache: VBench's cache folder.
        out: File of the results.
        log: File for VBench's output.
        seconds: Time limit, from the start of the subprocess.

    Yields:
        A function that waits for the end of the subprocess and returns the reason why ``out`` may be incomplete.
    """
    settings = {
        "VBENCH_CACHE_DIR": str(cache),
        "TORCH_HOME": str(cache / "torch_hub"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(request["threads"]),
    }
    end = time.monotonic() + seconds
    with tempfile.TemporaryFile() as asked, log.open("wb") as stream:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        # The process starts in a new session, so that VBench can be killed together with its subprocesses.
        process = subprocess.Popen(
            [str(python), "-P", str(RUNNER), str(out)],
            stdin=asked,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **settings},
            start_new_session=True,
        )

        def wait() -> str:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(process)
                return f"VBench was stopped after {seconds:.0f} s"
            return f"VBench's interpreter ended with code {process.returncode}: {_last_line(log)}"

        try:
            yield wait
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
