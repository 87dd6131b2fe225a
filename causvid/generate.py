"""The command ``causvid``: from a prompt file to mp4s (``generate``), and a checkpoint into one folder (``export``).

A checkpoint is one of three: a transformer that this pipeline trained (its VAE and text encoder lie beside it), a
``model.pt`` of the released CausVid with a Wan2.1 folder beside it, or a diffusers pipeline's folder. Sizes, schedule
and prompt length of the first two come from a params file; the third carries its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging

from causvid import params as params_file
from causvid.data.prompt_store import read_prompt_file
from causvid.data.video_writer import write_video
from causvid.diffusion.schedule import ScheduleConfig
from causvid.interop.original_checkpoint import load_generator
from causvid.interop.original_wan import load_components
from causvid.models.text_encoder import load_text_encoder
from causvid.models.vae import load_vae
from causvid.models.wan import load_transformer
from causvid.pipeline import CausVidPipeline
from causvid.runtime import device as devices
from causvid.runtime.progress import progress
from causvid.runtime.seeding import generator
from causvid.runtime.work import write_json
from causvid.shapes import VideoShape

MAP = "videos.json"
CRF = 16  # x264's quality of the mp4s


# --- a pipeline from each of the three --------------------------------------------------------------------------------


def load_checkpoint(
    checkpoint: Path, *, params: Path, wan: Path | None, precision: devices.Precision | None
) -> CausVidPipeline:
    """The pipeline of ``checkpoint``, on this process's device. precision None: the params file's, or float32.

    wan: the Wan2.1 folder of a released model.pt; None = the one beside it. Raises ValueError for what is none of the
    three, or lacks a part, naming it.
    """
    if (checkpoint / "model_index.json").is_file():
        pipeline = _from_diffusers(checkpoint, precision or devices.Precision.FLOAT32)
    elif checkpoint.is_file():
        pipeline = _from_released(checkpoint, params, wan or _wan_beside(checkpoint), precision)
    elif (checkpoint / "config.json").is_file():
        pipeline = _from_ours(checkpoint, params, precision)
    else:
        raise ValueError(
            f"--checkpoint is {checkpoint}; it must be a folder with config.json (trained here), a released model.pt, "
            "or a diffusers folder with model_index.json"
        )
    pipeline.to(devices.pick())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _from_diffusers(folder: Path, precision: devices.Precision) -> CausVidPipeline:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    names = ("shift", "solver_steps", "denoising_timesteps", "context_timestep", "text_tokens")
    ours = {name: index[name] for name in (*names, "height", "width", "frames", "fps") if name in index}
    encoder, tokenizer = load_text_encoder(folder / "text_encoder", folder / "tokenizer", precision.dtype)
    return CausVidPipeline(
        vae=load_vae(folder / "vae", precision.dtype),
        transformer=load_transformer(folder / "transformer", precision.dtype).eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        **ours,
    )


def _from_ours(folder: Path, params: Path, precision: devices.Precision | None) -> CausVidPipeline:
    vae, text = folder.parent / "vae", folder.parent / "text_encoder"
    for part, stage in ((vae, "train_vae"), (text, "encode_prompts")):
        if not part.is_dir():
            raise ValueError(f"{part} is not there, and {folder} needs it; run the stage {stage}")
    precision = precision or params_file.section(params, "model.precision", devices.Precision)
    encoder, tokenizer = load_text_encoder(text / "text_encoder", text / "tokenizer", precision.dtype)
    return CausVidPipeline(
        vae=load_vae(vae, precision.dtype),
        transformer=load_transformer(folder, precision.dtype).eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        **_settings(params),
    )


def _from_released(file: Path, params: Path, wan: Path, precision: devices.Precision | None) -> CausVidPipeline:
    model = params_file.read(params)["model"]
    precision = precision or params_file.section(params, "model.precision", devices.Precision)
    transformer = load_generator(
        file,
        num_attention_heads=model["transformer"]["num_attention_heads"],
        frames_per_block=model["frames_per_block"] or 1,
        causal=model["frames_per_block"] is not None,
    )
    for name in ("attention_head_dim", "ffn_dim", "num_layers", "text_dim"):
        ours, theirs = model["transformer"][name], transformer.config[name]
        if ours != theirs:
            raise ValueError(
                f"{params}: model.transformer.{name} is {ours}, {file} has {theirs}; give its own --params, as "
                "profiles/wan-1.3b.yaml"
            )
    vae, encoder, tokenizer = load_components(
        wan, vae_config=model["vae"], text_config=model["text_encoder"], dtype=precision.dtype
    )
    return CausVidPipeline(
        vae=vae.to(precision.dtype),
        transformer=transformer.to(precision.dtype),
        text_encoder=encoder,
        tokenizer=tokenizer,
        **_settings(params),
    )


def _settings(params: Path) -> dict[str, Any]:
    schedule, video = (
        params_file.section(params, "schedule", ScheduleConfig),
        params_file.section(params, "video", VideoShape),
    )
    return {**asdict(schedule), **asdict(video), "text_tokens": params_file.section(params, "model.text_tokens", int)}


def _wan_beside(file: Path) -> Path:
    found = sorted(path for path in file.parent.glob("Wan2.1*") if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{file} needs one Wan2.1 folder beside it (found: {names}); name it with --wan-folder")
    return found[0]


# --- videos -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video to make. index: its prompt's place in the prompt file."""

    index: int
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.index:05d}-seed{self.seed}.mp4"


def make_video(pipeline: CausVidPipeline, video: Video, shape: VideoShape, frames: int) -> Any:
    """uint8 frames [frames, H, W, 3] as a numpy array: a clip, cut to length, or a rollout when it is longer."""
    text, noise = pipeline.embed([video.prompt]), [generator(video.seed, "generate", video.index)]
    if frames > shape.frames:
        made = pipeline.rollout(text, shape, noise, frames)
    else:
        made = pipeline(text, shape, noise, few_steps=True)
    return made[0, :frames].cpu().numpy()


def generate(
    pipeline: CausVidPipeline,
    prompts: Sequence[str],
    out: Path,
    *,
    shape: VideoShape,
    seconds: float | None,
    seeds: Sequence[int],
    checkpoint: str,
) -> dict[str, int]:
    """Write ``out``/INDEX-seedN.mp4 for every prompt and seed, and ``out``/videos.json: which file shows what.

    Videos that are there already are kept, so a run that was stopped goes on. shape: of a clip the model makes at once;
    seconds: the videos' length, None = a clip's. Raises ValueError when ``out`` holds videos of other settings.
    """
    frames = shape.frames if seconds is None else round(seconds * shape.fps)
    if frames < 1 or (frames > shape.frames and not pipeline.is_causal):
        raise ValueError(
            f"--seconds is {seconds}, {frames} frames at {shape.fps} fps; it must be 1 frame at least, and "
            f"{shape.frames} at most for a bidirectional student"
        )
    pipeline.latent_shape(shape)  # raises for a size the VAE cannot hold
    settings = _settings_of(pipeline, shape, frames, checkpoint)
    done = _read_map(out, settings)
    wanted = [Video(index=i, prompt=prompt, seed=seed) for i, prompt in enumerate(prompts) for seed in seeds]
    for video in wanted:
        if video.name in done and done[video.name] != asdict(video):
            shown = done[video.name]["prompt"]
            raise ValueError(f"{out / video.name} shows {shown!r}, not {video.prompt!r}; choose another --out")
    missing = [video for video in wanted if video.name not in done or not (out / video.name).is_file()]
    out.mkdir(parents=True, exist_ok=True)
    for video in progress(missing, total=len(missing), what="generate"):
        write_video(out / video.name, make_video(pipeline, video, shape, frames), fps=shape.fps, crf=CRF)
        done[video.name] = asdict(video)
        write_json(out / MAP, {"settings": settings, "videos": done})
    return {"videos": len(wanted), "made": len(missing)}


def _settings_of(pipeline: CausVidPipeline, shape: VideoShape, frames: int, checkpoint: str) -> dict[str, Any]:
    """What a video depends on beside prompt, index and seed, as JSON has it."""
    precision = str(pipeline.dtype).removeprefix("torch.")
    shown = {**asdict(shape), "frames": frames, "clip_frames": shape.frames}
    schedule = {**asdict(pipeline.schedule), "denoising_timesteps": list(pipeline.schedule.denoising_timesteps)}
    return {**shown, **schedule, "checkpoint": checkpoint, "precision": precision}


def _read_map(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What ``out`` holds already. Raises ValueError for other settings than ``settings``, naming the first."""
    if not (out / MAP).is_file():
        return {}
    try:
        found = json.loads((out / MAP).read_text(encoding="utf-8"))
        before, videos = dict(found["settings"]), dict(found["videos"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{out / MAP} is not a map of videos ({error!r}); choose another --out or remove it"
        ) from error
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            was, now = before.get(name), settings.get(name)
            raise ValueError(f"{out} holds videos made with {name} {was}, not {now}; choose another --out")
    return videos


def fingerprint(checkpoint: Path) -> str:
    """16 hex digits of the sha256 of a checkpoint's transformer: one model must not go on with another's videos."""
    folder = checkpoint / "transformer" if (checkpoint / "model_index.json").is_file() else checkpoint
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


# --- the command ------------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, help="CausVid: videos from prompts, block after block.")
Checkpoint = Annotated[
    Path,
    typer.Option(help="folder trained here, released model.pt with a Wan2.1 folder beside it, or diffusers folder"),
]
Params = Annotated[Path, typer.Option(help="sizes, schedule, block size; a diffusers folder has its own")]
Wan = Annotated[Path | None, typer.Option(help="the Wan2.1 folder, where it is not beside model.pt")]
OfPrecision = Annotated[devices.Precision | None, typer.Option(help="of the weights; none = the params file's")]


@app.command("generate")
def generate_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder for the mp4s and videos.json; going on with it is safe")],
    prompts: Annotated[Path | None, typer.Option(help="text file, one prompt a line")] = None,
    prompt: Annotated[str | None, typer.Option(help="one prompt")] = None,
    seed: Annotated[list[int], typer.Option(help="again for more videos of every prompt")] = [0],  # noqa: B006  typer's
    seconds: Annotated[
        float | None, typer.Option(help="length; longer than a clip: a rollout of a causal student")
    ] = None,
    height: Annotated[int | None, typer.Option(help="pixels; none = as trained")] = None,
    width: Annotated[int | None, typer.Option(help="pixels; none = as trained")] = None,
    fps: Annotated[int | None, typer.Option(help="frames per second; none = as trained")] = None,
    params: Params = Path("params.yaml"),
    wan_folder: Wan = None,
    precision: OfPrecision = None,
) -> None:
    """Make an mp4 for every prompt and seed."""

    def run() -> str:
        if (prompts is None) == (prompt is None):
            raise ValueError("give one of --prompts and --prompt")
        lines = [prompt] if prompt is not None else read_prompt_file(prompts or Path(), "--prompts")
        pipeline = load_checkpoint(checkpoint, params=params, wan=wan_folder, precision=precision)
        trained = pipeline.video
        shape = VideoShape(
            height=height or trained.height, width=width or trained.width, frames=trained.frames, fps=fps or trained.fps
        )
        counts = generate(
            pipeline, lines, out, shape=shape, seconds=seconds, seeds=seed, checkpoint=fingerprint(checkpoint)
        )
        return f"{out}: {counts['videos']} videos, {counts['made']} of them made now; {out / MAP} says which is which"

    _say(run)


@app.command("export")
def export_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="diffusers folder to make")],
    params: Params = Path("params.yaml"),
    wan_folder: Wan = None,
    precision: OfPrecision = None,
) -> None:
    """Put transformer, VAE, text encoder and settings into one diffusers folder."""

    def run() -> str:
        if out.exists():
            raise ValueError(f"--out is {out}, which exists; choose another folder or remove it")
        load_checkpoint(checkpoint, params=params, wan=wan_folder, precision=precision).save_pretrained(out)
        return f"{out}: CausVidPipeline.from_pretrained reads it"

    _say(run)


def _say(run: Callable[[], str]) -> None:
    """What ``run`` returns, or the sentence of what the user can mend, with exit code 1."""
    logging.disable_progress_bar()  # of loading weights; ours is of the videos
    try:
        print(run())
    except ValueError as error:
        sys.exit(f"causvid: {error}")


if __name__ == "__main__":
    app()
