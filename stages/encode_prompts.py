"""Stage encode_prompts: text embeddings of captions, evaluation prompts and the negative prompt; the text encoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import typer

from causvid.compute.device import Precision
from causvid.harness.stage import stage_run
from causvid.preparation.prompts import PromptConfig, encode_prompts

READS = ("seed", "model.text_encoder", "model.text_tokens", "model.precision", "encode_prompts")


def main(
    out: Path = typer.Option(...),
    text_encoder: Path = typer.Option(...),
    metrics: Path = typer.Option(...),
    params: Path = typer.Option(Path("params.yaml")),
) -> None:
    """Options are paths of the pipeline; numbers and the user's paths come from the params file."""
    with stage_run("encode_prompts", params=params, reads=READS, inputs=(), metrics=metrics) as run:
        building, encoder = run.work / "out", run.work / "text_encoder"
        for leftover in (building, encoder):
            shutil.rmtree(leftover, ignore_errors=True)
        results = encode_prompts(
            run.section("encode_prompts", PromptConfig),
            building,
            encoder,
            text_encoder=run.section("model.text_encoder", dict[str, Any]),
            tokens=run.section("model.text_tokens", int),
            precision=run.section("model.precision", Precision),
            seed=run.section("seed", int),
        )
        run.report(results)
        run.publish(building, out)
        run.publish(encoder, text_encoder)


if __name__ == "__main__":
    typer.run(main)
