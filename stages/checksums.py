"""Stage checksums: one file for each path that params.yaml names, which says what the path holds.

DVC cannot save a dependency that is missing, stops at a link that leads nowhere, does not look behind a linked folder,
and takes a file for unchanged when its inode, size and modification time are. Stages depend on these files instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from causvid import params as params_file
from causvid.consistency import refuse_problems
from causvid.harness import inputs
from causvid.harness.project import refuse_unusable
from causvid.runtime import files


def main(
    out: Path = typer.Option(..., help="folder to write: one file for each entry, called like it"),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Write ``out``; a file whose content stays the same is not touched."""
    root = Path.cwd()
    try:
        refuse_unusable(root)
        refuse_problems(params)  # in the first second, not hours later in the stage that needs the number
        values = params_file.read(params)
        for old in out.glob("*"):  # of an entry that is gone, or cut short by a kill
            if old.name not in inputs.PATHS:
                old.unlink()
        for name in inputs.PATHS:
            if name not in inputs.COUNTED_BY:
                told_by_dvc = not inputs.PATHS[name] and inputs.is_output(inputs.value_of(values, name))
                (found,) = [inputs.BY_DVC] if told_by_dvc else inputs.checksums(values, [name], root).values()
                if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != f"{found}\n":
                    files.write_text(out / name, f"{found}\n")
    except ValueError as error:
        sys.exit(f"checksums: {error}")


if __name__ == "__main__":
    typer.run(main)
