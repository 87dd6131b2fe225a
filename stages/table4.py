"""Stage table4: the paper's Table 4 over seeds, from the ablation's evaluations."""

from __future__ import annotations

from pathlib import Path

import typer

from causvid.harness.stage import stage_run
from causvid.reporting import ablation

READS = ("profile",)


def main(
    evaluations: Path = typer.Option(..., help="folder of <row>/<seed>.json and <row>-<inputs>/<seed>.json"),
    settings: Path = typer.Option(..., help="the ablation's params.yaml; its seeds are read"),
    inputs: str = typer.Option(..., help="what the students of the table were trained on: data | rollout"),
    out: Path = typer.Option(..., help="JSON file to write"),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths; numbers come from the evaluations."""
    read = (evaluations, settings)
    with stage_run("table4", item=inputs, params=params, reads=READS, inputs=read, metrics=out) as run:
        found = ablation.read_evaluations(evaluations, ablation.read_seeds(settings), inputs)
        made = {"profile": run.section("profile", str), "inputs": inputs, "commit": ablation.commit(Path.cwd())}
        run.report({**made, **ablation.table4(found)})


if __name__ == "__main__":
    typer.run(main)
