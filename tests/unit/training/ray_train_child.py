"""``launch`` in a process of its own: Ray leaves threads behind, which disturb the tests that come after it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from causvid.compute.parallel import launch


def launched(train: Callable[[Any], None], run: Any) -> subprocess.CompletedProcess[str]:
    """The end of a process that launches ``train`` on ``run``; what it raises is the last line of its stderr."""
    run.work.mkdir(parents=True)
    (run.work / "run").write_bytes(pickle.dumps((train, run)))
    command = [sys.executable, "-m", __name__, str(run.work / "run")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    train, run = pickle.loads(Path(sys.argv[1]).read_bytes())  # our own, from a moment ago
    launch(train, run, run.compute, name="test", storage=run.work / "ray")
