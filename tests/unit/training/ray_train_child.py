"""Call ``launch`` in a separate process, because Ray leaves threads that would disturb later tests."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from causvid.compute.parallel import launch


def launched(train: Callable[[Any], None], run: Any) -> subprocess.CompletedProcess[str]:
    """Launch ``train`` on ``run`` in a child process, and wait for its end.

    The last line of stderr is the error, if any.
    """
    run.work.mkdir(parents=True)
    (run.work / "run").write_bytes(pickle.dumps((train, run)))
    command = [sys.executable, "-m", __name__, str(run.work / "run")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    train, run = pickle.loads(Path(sys.argv[1]).read_bytes())  # ``launched`` wrote this file
    launch(train, run, run.compute, name="test", storage=run.work / "ray")
