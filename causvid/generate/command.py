"""The command ``causvid``: generate videos from prompts (``generate``), or export a checkpoint (``export``).

This module imports no torch. The commands check arguments and paths before they import the modules that load models, so
that ``--help`` and errors are printed at once.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from causvid.compute.precision import Precision
from causvid.data.prompt_file import read_prompt_file
from causvid.generate.checkpoint import find_checkpoint
from causvid.generate.folder import MAP, check, require_folder
from causvid.harness.imports import importing
from causvid.runtime import text
from causvid.runtime.files import publish

app = typer.Typer(add_completion=False, help="CausVid: generate videos from prompts, one block after another.")
Checkpoint = Annotated[
    Path,
    typer.Option(help="folder that a stage trained, diffusers folder, or original model.pt beside a Wan2.1 folder"),
]
Params = Annotated[
    Path | None,
    typer.Option(help="params file with sizes, schedule and block size of a model.pt; none = params.yaml"),
]
Wan = Annotated[Path | None, typer.Option(help="Wan2.1 folder, if it is not beside model.pt")]
OfPrecision = Annotated[Precision | None, typer.Option(help="precision of the weights; none = as trained")]


@app.command("generate")
def generate_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder for the mp4s and videos.json; may contain videos of earlier calls")],
    prompts: Annotated[Path | None, typer.Option(help="text file with one prompt per line")] = None,
    prompt: Annotated[list[str], typer.Option(help="one prompt; repeat --prompt for more prompts")] = [],  # noqa: B006  the default of a typer option
    seed: Annotated[
        list[int], typer.Option(help="0 to 4294967295, as in torch.Generator; repeat --seed for more videos per prompt")
    ] = [0],  # noqa: B006  the default of a typer option
    seconds: Annotated[
        float | None, typer.Option(help="length; a causal student can exceed the length of a clip; none = one clip")
    ] = None,
    height: Annotated[int | None, typer.Option(help="height in pixels; none = as in training")] = None,
    width: Annotated[int | None, typer.Option(help="width in pixels; none = as in training")] = None,
    fps: Annotated[int | None, typer.Option(help="frames per second; none = as in training")] = None,
    scale: Annotated[int, typer.Option(help="factor by which each frame is enlarged, without interpolation")] = 1,
    params: Params = None,
    wan_folder: Wan = None,
    precision: OfPrecision = None,
) -> None:
    """Generate an mp4 for every prompt and seed."""

    def run() -> str:
        given = [line.strip() for line in prompt]
        if (prompts is None) == (not given) or not all(given):
            raise ValueError("give either --prompts or at least one --prompt; a prompt must not be empty")
        lines = given or read_prompt_file(prompts or Path(), "--prompts")
        check(lines, seed)
        require_folder(out)
        found = find_checkpoint(checkpoint, params=params, wan=wan_folder)
        with importing():
            from causvid.generate.formats import load
            from causvid.generate.videos import generate
            from causvid.wan.text_encoder import unknown_words

        pipeline = load(found, precision)
        changes = {"height": height, "width": width, "fps": fps}
        shape = replace(pipeline.video, **{name: value for name, value in changes.items() if value is not None})
        if unknown := unknown_words(pipeline.tokenizer, lines):
            words = ", ".join(unknown)
            print(
                f"causvid: the text encoder knows none of these words and cannot tell them apart: {words}",
                file=sys.stderr,
            )
        result = generate(pipeline, lines, out, shape=shape, seconds=seconds, seeds=seed, scale=scale)
        parts = [f"{out}: {result.videos} videos, {result.made} of them new"]
        parts.append(f"{out / MAP} lists the prompt and seed of each file.")
        repeated = f" {result.repeated} lines repeat a prompt and were ignored." if result.repeated else ""
        return "; ".join(parts) + repeated + (f"\n{result.speed}" if result.speed else "")

    _say(run)


@app.command("export")
def export_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="diffusers folder to create")],
    params: Params = None,
    wan_folder: Wan = None,
    precision: OfPrecision = Precision.FLOAT32,
) -> None:
    """Export the transformer, VAE, text encoder and settings to one diffusers folder."""

    def run() -> str:
        if out.exists():
            raise ValueError(f"--out is {out}, which exists; choose another folder or remove it")
        found = find_checkpoint(checkpoint, params=params, wan=wan_folder)
        with importing():
            from causvid.generate.formats import load

        pipeline = load(found, precision)
        building = out.with_name(f".{out.name}.exporting")
        shutil.rmtree(building, ignore_errors=True)
        try:
            pipeline.save_pretrained(building)
            publish(building, out)
        except OSError as error:
            raise ValueError(f"--out is {out}, which cannot be written ({error})") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return f"{out}: load it with CausVidPipeline.from_pretrained"

    _say(run)


def _say(run: Callable[[], str]) -> None:
    """Print the result of ``run``. After a ValueError, print its message and exit with code 1."""
    try:
        print(text.escaped(run()))  # the name in --out may not be encodable in UTF-8
    except ValueError as error:
        sys.exit(f"causvid: {error}")


if __name__ == "__main__":
    app()
