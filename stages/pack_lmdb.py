"""Stage pack_lmdb: shards, or a released LMDB, into one LMDB in the released layout, with a sha256 per record."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from causvid.data.pack import PackConfig, Source, pack
from causvid.harness.stage import stage_run
from causvid.interop.original_lmdb import import_store

READS = ("pack_lmdb",)


def main(
    item: str = typer.Option(...),
    out: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths of the pipeline; numbers and the user's paths come from the params file."""
    with stage_run(
        "pack_lmdb", item=item, params=params, reads=READS, inputs=(), metrics=metrics,
        paths=(f"pack_lmdb.{item}.folder",),
    ) as run:  # fmt: skip
        building, config = run.work / "out", run.section("pack_lmdb", PackConfig)
        for leftover in (building, *run.work.glob(".out.*")):
            shutil.rmtree(leftover, ignore_errors=True)
        chosen, per_transaction = config.item(item), config.records_per_transaction
        if chosen.source == Source.RELEASED:
            packed = import_store(chosen.folder, building, timesteps=chosen.timesteps, per_transaction=per_transaction)
        else:
            packed = pack(chosen.folder, building, per_transaction=per_transaction)
        run.report(packed)
        run.publish(building, out)


if __name__ == "__main__":
    typer.run(main)
