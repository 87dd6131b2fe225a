"""``launch`` in a process of its own: Ray leaves threads behind, which disturb the tests that come after it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from causvid.compute.parallel import launch


def launched(train: Callable[[Any], None], job: Any) -> subprocess.CompletedProcess[str]:
    """The end of a process that launches ``train`` on ``job``; what it raises is the last line of its stderr."""
    job.work.mkdir(parents=True)
    (job.work / "job").write_bytes(pickle.dumps((train, job)))
    command = [sys.executable, "-m", __name__, str(job.work / "job")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    train, job = pickle.loads(Path(sys.argv[1]).read_bytes())  # our own, from a moment ago
    launch(train, job, job.compute, name="test", storage=job.work / "ray")
