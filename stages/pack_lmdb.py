"""Stage pack_lmdb: shards into one LMDB in the released layout, with a sha256 per record."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from causvid.data.pack import PackConfig, pack
from causvid.runtime.stage import stage_run

READS = ("pack_lmdb",)


def main(
    shards: Path = typer.Option(...),
    item: str = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the params file."""
    with stage_run("pack_lmdb", item=item, params=params, reads=READS, inputs=(shards,), metrics=metrics) as run:
        building = run.work / "out"
        for leftover in (building, building.with_name("out.writing")):
            shutil.rmtree(leftover, ignore_errors=True)
        run.report(pack(shards, building, run.section("pack_lmdb", PackConfig)))
        run.publish(building, out)


if __name__ == "__main__":
    typer.run(main)
