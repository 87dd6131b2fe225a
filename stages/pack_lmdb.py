"""The stage ``pack_lmdb`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.data.stores.config import PackConfig, Source
from causvid.harness.command_line import run
from causvid.harness.declaration import Item, Metrics, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.params import PathRule


@dataclass(frozen=True, kw_only=True)
class PackLmdb(Stage):
    """Pack shards, or an LMDB of the original CausVid code, into an LMDB of that layout with sha256 checksums."""

    HEADLINE = ("{count} records",)

    item: Annotated[str, Item("latents or ode_pairs")]
    out: Annotated[Path, Writes("folder of the LMDB")]
    metrics: Annotated[Path, Metrics()]
    config: Annotated[PackConfig, Section("pack_lmdb")]

    @classmethod
    def user_paths(cls, item: str | None) -> dict[str, PathRule]:
        """Return the path rule of the LMDB ``item``. The section ``pack_lmdb`` has one entry for each LMDB."""
        return {f"pack_lmdb.{item}.folder": PathRule()}

    def run(self, stage: StageRun) -> None:
        """Write the LMDB of ``item``."""
        with importing():
            from causvid.data.pack import pack
            from causvid.interop.original_lmdb import import_store

        building, chosen = stage.work / "out", self.config.item(self.item)
        for leftover in (building, *stage.work.glob(".out.*")):
            shutil.rmtree(leftover, ignore_errors=True)
        at_once = self.config.records_per_transaction
        if chosen.source == Source.RELEASED:
            packed = import_store(chosen.folder, building, timesteps=chosen.timesteps, per_transaction=at_once)
        else:
            packed = pack(chosen.folder, building, per_transaction=at_once)
        stage.report(packed)
        stage.publish(building, self.out)


main = command(PackLmdb)

if __name__ == "__main__":
    run("pack_lmdb", main)
