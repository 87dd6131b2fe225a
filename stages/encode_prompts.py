"""The stage ``encode_prompts`` and its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from causvid.compute.precision import Precision
from causvid.harness.command_line import run
from causvid.harness.declaration import Metrics, Section, Stage, Writes, command
from causvid.harness.imports import importing
from causvid.harness.stage import StageRun
from causvid.preparation.prompts.config import PromptConfig


@dataclass(frozen=True, kw_only=True)
class EncodePrompts(Stage):
    """Encode the captions, the evaluation prompts and the negative prompt, and save the text encoder."""

    HEADLINE = ("{prompts} prompts",)

    out: Annotated[Path, Writes("folder of prompt embeddings")]
    text_encoder: Annotated[Path, Writes("folder of the text encoder and its tokenizer")]
    metrics: Annotated[Path, Metrics()]
    seed: Annotated[int, Section("seed")]
    encoder: Annotated[dict[str, Any], Section("model.text_encoder")]
    tokens: Annotated[int, Section("model.text_tokens")]
    precision: Annotated[Precision, Section("model.precision")]
    config: Annotated[PromptConfig, Section("encode_prompts")]

    def run(self, stage: StageRun) -> None:
        """Write the embeddings and the text encoder."""
        with importing():
            from causvid.preparation.prompts.encoding import encode_prompts

        building, encoder = stage.work / "out", stage.work / "text_encoder"
        for leftover in (building, encoder):
            shutil.rmtree(leftover, ignore_errors=True)
        results = encode_prompts(
            self.config,
            building,
            encoder,
            text_encoder=self.encoder,
            tokens=self.tokens,
            precision=self.precision,
            seed=self.seed,
        )
        stage.report(results)
        stage.publish(building, self.out)
        stage.publish(encoder, self.text_encoder)


main = command(EncodePrompts)

if __name__ == "__main__":
    run("encode_prompts", main)
