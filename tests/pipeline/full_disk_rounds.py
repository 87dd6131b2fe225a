"""Run flows on a disk that becomes full. Then enlarge the disk, and run the same flow again.

``python -m tests.pipeline.full_disk_rounds DISK LOG ROUNDS SEED``

The process must have its own mount namespace. The stages and the attempts are defined in kill_rounds. The result is one
line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.pipeline.kill_rounds import OVER, ended, forget, make, outs, start, state

ROOM = 2**26  # bytes; an undisturbed attempt needs a fiftieth of this size
# Messages of this project, and of programs that fail before a stage runs.
MESSAGES = ("the disk is full", "No space left on device")


def resize(disk: Path, size: int) -> None:
    """Set the size of a file system in memory to ``size`` bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", "none", str(disk)], check=True)


def used(disk: Path) -> int:
    """Return the number of used bytes of the disk."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def main(disk: Path, log: Path, rounds: int, seed: int) -> None:
    """Try ``rounds`` disks of random sizes and print a line of JSON.

    The line counts the disks that were too small (full), the disks whose error mentions the full disk (told), the disks
    with incomplete outs (half_written), and the disks whose final state differs from an undisturbed run (different).
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(disk)], check=True)
    root, draw = disk / "project", random.Random(seed)
    make(root)
    empty = used(disk)
    if ended(start(root, log), OVER) != 0:
        sys.exit(log.read_text())
    undisturbed, needed = state(root), used(disk) - empty
    full = told = half_written = different = 0
    last = ""
    for _ in range(rounds):
        forget(root)
        resize(disk, used(disk) + draw.randrange(4096, needed))
        code = ended(start(root, log), OVER)
        if code:
            full += 1
            text = log.read_text()
            mentioned = any(message in text for message in MESSAGES)
            told += mentioned
            last = last if mentioned else text[-3000:]
            half_written += not outs(root).items() <= undisturbed.items()
        resize(disk, ROOM)
        if ended(start(root, log), OVER) != 0 or state(root) != undisturbed:
            different, last = different + 1, log.read_text()[-3000:]
    counts = {"full": full, "told": told, "half_written": half_written, "different": different, "log": last}
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
