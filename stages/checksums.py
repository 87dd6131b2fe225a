"""The stage ``checksums`` writes one file for each path in params.yaml, with the checksum of the content at that path.

Other stages depend on these files and not on the paths, for four reasons: DVC cannot save a missing dependency, fails
on broken links, does not follow links to folders, and compares only the inode, size and modification time of a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from causvid import params as params_file
from causvid.consistency import checked
from causvid.harness import inputs, outputs
from causvid.harness.command_line import run
from causvid.harness.project import refuse_unusable
from causvid.profile import PATHS
from causvid.runtime import files


def main(
    out: Path = typer.Option(..., help="folder of checksums, one file for each path in the params file"),
    params: Path = typer.Option(Path("params.yaml"), help="params file"),
) -> None:
    """Write the checksum of every path in params.yaml. An output file with equal content is not written again.

    DVC runs this stage before all others. The stage therefore also puts the outputs of killed stages back.
    """
    root = Path.cwd()
    for line in outputs.repair(root):
        print(line, file=sys.stderr)
    try:
        refuse_unusable(root)
        values = params_file.read(params)
        checked(values)  # reports a wrong value now, not hours later in the stage that needs the value
        for old in out.glob("*"):  # files of removed entries or of an interrupted run
            if old.name not in PATHS:
                old.unlink()
        for name, rule in PATHS.items():
            if rule.counted_by is None:
                in_dvc = not rule.may_be_missing and inputs.is_output(inputs.value_of(values, name))
                (found,) = [inputs.BY_DVC] if in_dvc else inputs.checksums(values, {name: rule}, root).values()
                if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != f"{found}\n":
                    files.write_text(out / name, f"{found}\n")
    except ValueError as error:
        sys.exit(f"checksums: {params_file.with_lines(error, params)}")
    outputs.finished()


if __name__ == "__main__":
    run("checksums", main)
