"""The command ``causvid``: from prompts to mp4s (``generate``), and a checkpoint into one folder (``export``)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from causvid.compute import device as devices
from causvid.data.stores.prompt_store import read_prompt_file
from causvid.generate.formats import load_checkpoint
from causvid.generate.videos import MAP, generate
from causvid.runtime import text
from causvid.runtime.files import publish

app = typer.Typer(add_completion=False, help="CausVid: videos from prompts, block after block.")
Checkpoint = Annotated[
    Path,
    typer.Option(help="folder trained here, released model.pt with a Wan2.1 folder beside it, or diffusers folder"),
]
Params = Annotated[
    Path | None,
    typer.Option(help="sizes, schedule and block size of weights that do not say them; none = params.yaml"),
]
Wan = Annotated[Path | None, typer.Option(help="the Wan2.1 folder, where it is not beside model.pt")]
OfPrecision = Annotated[devices.Precision | None, typer.Option(help="of the weights; none = as trained")]


@app.command("generate")
def generate_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder for the mp4s and videos.json; going on with it is safe")],
    prompts: Annotated[Path | None, typer.Option(help="text file, one prompt a line")] = None,
    prompt: Annotated[str | None, typer.Option(help="one prompt")] = None,
    seed: Annotated[
        list[int], typer.Option(help="0 to 4294967295, as in torch.Generator; again for more videos of every prompt")
    ] = [0],  # noqa: B006  typer's
    seconds: Annotated[
        float | None, typer.Option(help="length; longer than a clip: a rollout of a causal student")
    ] = None,
    height: Annotated[int | None, typer.Option(help="pixels; none = as trained")] = None,
    width: Annotated[int | None, typer.Option(help="pixels; none = as trained")] = None,
    fps: Annotated[int | None, typer.Option(help="frames per second; none = as trained")] = None,
    params: Params = None,
    wan_folder: Wan = None,
    precision: OfPrecision = None,
) -> None:
    """Make an mp4 for every prompt and seed."""

    def run() -> str:
        if (prompts is None) == (prompt is None) or (prompt is not None and not prompt.strip()):
            raise ValueError("give one of --prompts and --prompt, and not an empty one")
        if prompt is not None:
            text.require(prompt, "--prompt")
        lines = [prompt] if prompt is not None else read_prompt_file(prompts or Path(), "--prompts")
        pipeline = load_checkpoint(checkpoint, params=params, wan=wan_folder, precision=precision)
        changes = {"height": height, "width": width, "fps": fps}
        shape = replace(pipeline.video, **{name: value for name, value in changes.items() if value is not None})
        counts = generate(pipeline, lines, out, shape=shape, seconds=seconds, seeds=seed)
        repeated = f" Lines that repeat a prompt: {counts['repeated']}, not made again." if counts["repeated"] else ""
        made = f"{counts['videos']} videos, {counts['made']} of them made now"
        return f"{out}: {made}; {out / MAP} lists which file shows what.{repeated}"

    _say(run)


@app.command("export")
def export_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="diffusers folder to make")],
    params: Params = None,
    wan_folder: Wan = None,
    precision: OfPrecision = devices.Precision.FLOAT32,
) -> None:
    """Put transformer, VAE, text encoder and settings into one diffusers folder."""

    def run() -> str:
        if out.exists():
            raise ValueError(f"--out is {out}, which exists; choose another folder or remove it")
        pipeline = load_checkpoint(checkpoint, params=params, wan=wan_folder, precision=precision)
        building = out.with_name(f".{out.name}.exporting")
        shutil.rmtree(building, ignore_errors=True)
        try:
            pipeline.save_pretrained(building)
            publish(building, out)
        except OSError as error:
            raise ValueError(f"--out is {out}, which cannot be written ({error})") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return f"{out}: CausVidPipeline.from_pretrained reads it"

    _say(run)


def _say(run: Callable[[], str]) -> None:
    """What ``run`` returns, or the sentence of what the user can mend, with exit code 1."""
    logging.disable_progress_bar()  # of loading weights; ours is of the videos
    try:
        print(text.escaped(run()))  # --out may have a name that UTF-8 cannot hold
    except ValueError as error:
        sys.exit(f"causvid: {error}")


if __name__ == "__main__":
    app()
