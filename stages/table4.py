"""The stage ``table4``, which exists in the pipeline of the ablation only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from causvid.harness.command_line import run
from causvid.harness.declaration import Item, Metrics, Reads, Section, Stage, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun


@dataclass(frozen=True, kw_only=True)
class Table4(Stage):
    """Compute the mean scores over the seeds, and check which claims about the rows hold (CausVid Table 4)."""

    evaluations: Annotated[Path, Reads("folder of <row>/<seed>.json and <row>-<inputs>/<seed>.json")]
    settings: Annotated[Path, Reads("the ablation's params file, with the seeds and the changes of each row")]
    base: Annotated[Path, Reads("the params file that the rows change")]
    inputs: Annotated[str, Item("input of the students in training: data or rollout")]
    # The table is outside of the ablation's DVC project (docs/architecture.md).
    out: Annotated[Path, Metrics("JSON file of the table", in_dvc=False)]
    profile: Annotated[str, Section("profile")]

    def run(self, stage: StageRun) -> None:
        """Write the table of the rows that share ``inputs``."""
        from causvid.reporting import ablation

        found = ablation.read_evaluations(self.evaluations, ablation.read_seeds(self.settings), self.inputs)
        origin = {"profile": self.profile, "inputs": self.inputs, "commit": ablation.commit(Path.cwd())}
        stage.report({**origin, **ablation.table4(found, {row: self._cost(row) for row in found})})

    def _cost(self, row: str) -> dict[str, float]:
        """Return the cost of a row as the planner estimates it. The planner is no dependency of this stage in DVC."""
        with importing():
            from causvid import params
            from causvid.consistency import checked
            from causvid.plan import Plan
            from causvid.reporting import ablation

        changes = [f"{self.settings}:all", f"{self.settings}:rows.{row}", f"train_dmd.inputs={self.inputs}"]
        plan = Plan(checked(params.changed(self.base, changes)))
        stages = plan.training(causal_teacher=ablation.ROWS[row].causal_teacher)
        return ablation.cost(row, {it.stage: it for it in stages})


main = command(Table4)

if __name__ == "__main__":
    run("table4", main)
