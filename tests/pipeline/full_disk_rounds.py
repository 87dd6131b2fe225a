"""Let the disk of a flow's project fill up, give it room, start the flow again: ``python -m tests.pipeline.full_disk_rounds``.

For processes with mounts of their own. Stages and attempts are kill_rounds'. One line of JSON tells what came of it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.pipeline.kill_rounds import OVER, ended, forget, make, outs, start, state

ROOM = 2**26  # bytes; an undisturbed attempt takes a fiftieth
WORDS = ("the disk is full", "No space left on device")  # ours, or those of what fails before a stage runs


def resize(disk: Path, size: int) -> None:
    """Of a file system that lies in memory."""
    subprocess.run(["mount", "-o", f"remount,size={size}", "none", str(disk)], check=True)


def used(disk: Path) -> int:
    """Bytes."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def main(disk: Path, log: Path, rounds: int, seed: int) -> None:
    """``rounds`` disks of random sizes; counts of those that were too small, that said so, and that ended well."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(disk)], check=True)
    root, draw = disk / "project", random.Random(seed)
    make(root)
    empty = used(disk)
    if ended(start(root, log), OVER) != 0:
        sys.exit(log.read_text())
    undisturbed, whole = state(root), used(disk) - empty
    full = told = half_written = different = 0
    last = ""
    for _ in range(rounds):
        forget(root)
        resize(disk, used(disk) + draw.randrange(4096, whole))
        code = ended(start(root, log), OVER)
        if code:
            full += 1
            text = log.read_text()
            said = any(words in text for words in WORDS)
            told += said
            last = last if said else text[-3000:]
            half_written += not outs(root).items() <= undisturbed.items()
        resize(disk, ROOM)
        if ended(start(root, log), OVER) != 0 or state(root) != undisturbed:
            different, last = different + 1, log.read_text()[-3000:]
    counts = {"full": full, "told": told, "half_written": half_written, "different": different, "log": last}
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
