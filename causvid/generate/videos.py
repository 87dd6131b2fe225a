"""Generate an mp4 for each prompt and seed, and write a map of the files. An interrupted run can be continued."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from causvid.compute import device as devices
from causvid.data.videos.video_writer import remove_unfinished, write_video
from causvid.generate.enlarging import Frames, enlarged, require_scale
from causvid.generate.folder import MAP, NOISE, Video, check, held, read_map
from causvid.generate.speed import Stopwatch
from causvid.harness.progress import progress
from causvid.pipeline import CausVidPipeline
from causvid.runtime.files import write_json
from causvid.runtime.shapes import VideoShape
from causvid.runtime.text import prompt_list

CRF = 16  # quality of x264 for the mp4 files; lower is better
RULE = (  # explains the map to its readers; no code reads this text
    f"The prompt and the seed determine a video. All its noise comes from {NOISE}: the line of the prompt, the other "
    "prompts and the batch size do not change it. Batches of equal size give equal bytes; in batches of other sizes, "
    "values of frames differ by at most one level of 255 (float32)."
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of ``generate``.

    Attributes:
        videos: Number of requested videos.
        made: Number of videos that this call generated.
        repeated: Number of repeated prompts, which were ignored.
        speed: Speed of the generation in one line; empty if this call generated no video.
    """

    videos: int
    made: int
    repeated: int
    speed: str


def make_video(pipeline: CausVidPipeline, video: Video, shape: VideoShape, frames: int) -> Iterator[Frames]:
    """Generate a video in chunks: a clip that is cut to ``frames`` or, if ``frames`` exceeds a clip, a rollout.

    As in diffusers, the noise depends only on the seed. In Python, a torch.Generator with this seed gives this video.

    Returns:
        An iterator over uint8 chunks [f, H, W, 3] with ``frames`` frames in total. A causal student yields each block.
    """
    embeddings, noise = pipeline.embed([video.prompt]), [torch.Generator().manual_seed(video.seed)]
    if frames > shape.frames:
        chunks = pipeline.rollout(embeddings, shape, noise, frames, few_steps=True)
    elif pipeline.is_causal:
        chunks = pipeline.stream(embeddings, shape, noise, few_steps=True)
    else:
        chunks = iter([pipeline(embeddings, shape, noise, few_steps=True)])
    return _cut((chunk[0].cpu().numpy() for chunk in chunks), frames)


def _cut(chunks: Iterator[Frames], frames: int) -> Iterator[Frames]:
    """Yield the first ``frames`` frames. Later chunks are not generated."""
    while frames > 0:
        chunk = next(chunks)[:frames]
        frames -= len(chunk)
        yield chunk


def generate(
    pipeline: CausVidPipeline,
    prompts: str | Sequence[str],
    out: Path,
    *,
    shape: VideoShape,
    seconds: float | None,
    seeds: Sequence[int],
    scale: int = 1,
) -> Result:
    """Write an mp4 for every different prompt and seed, and write videos.json, which lists each file with its prompt.

    The prompt and the seed determine the name of a file. Videos of the same prompt and seed that are already in the
    folder are not generated again, so that an interrupted run can be continued, and prompts can be added in any order.
    A long video is written during the generation.

    Args:
        pipeline: A few-step student with its text encoder.
        prompts: One prompt or a sequence of prompts. A repeated prompt is used once.
        out: The output folder, which is created if it does not exist.
        shape: Size of a clip.
        seconds: Length of the videos; None = the length of a clip.
        seeds: Seeds from 0 to 2**32 - 1. A repeated seed is used once.
        scale: Factor by which the height and the width of the frames are enlarged, without interpolation.

    Raises:
        ValueError: ``out`` contains videos that other settings or an older version generated, another process is
            writing into ``out``, or an argument is invalid.
    """
    frames = _frames_of(seconds, shape, is_causal=pipeline.is_causal)
    pipeline.latent_shape(shape)  # raises ValueError for an unsupported size
    prompts = prompt_list(prompts)
    check(prompts, seeds)
    require_scale(scale, shape)
    settings = {**_settings_of(pipeline, shape, frames), "scale": scale}
    watch = Stopwatch()
    with held(out):
        done = read_map(out, settings)
        wanted = [Video(prompt=prompt, seed=seed) for prompt in dict.fromkeys(prompts) for seed in dict.fromkeys(seeds)]
        missing = [video for video in wanted if video.name not in done or not _has_bytes(out / video.name)]
        try:
            remove_unfinished(out)
            for video in progress(missing, total=len(missing), what="generate"):
                chunks = watch.timed(partial(make_video, pipeline, video, shape, frames))
                write_video(out / video.name, enlarged(chunks, scale), fps=shape.fps, crf=CRF)
                _sync(out / video.name)
                done[video.name] = video
                videos = {name: asdict(shown) for name, shown in done.items()}
                write_json(out / MAP, {"rule": RULE, "settings": settings, "videos": videos})
        except OSError as error:
            raise ValueError(
                f"--out is {out}, which cannot be written into ({error}); run the same command again to continue"
            ) from error
    speed = watch.describe(devices.describe(pipeline.device))
    return Result(videos=len(wanted), made=len(missing), repeated=len(prompts) - len(set(prompts)), speed=speed)


def _frames_of(seconds: float | None, shape: VideoShape, *, is_causal: bool) -> int:
    if seconds is None:
        return shape.frames
    if not math.isfinite(seconds) or round(seconds * shape.fps) < 1:
        raise ValueError(f"--seconds is {seconds}; at {shape.fps} fps it must be at least {1 / shape.fps:g}, one frame")
    frames = round(seconds * shape.fps)
    if frames > shape.frames and not is_causal:
        raise ValueError(
            f"--seconds is {seconds}, {frames} frames at {shape.fps} fps; a bidirectional student generates at most "
            f"{shape.frames} frames"
        )
    return frames


def _settings_of(pipeline: CausVidPipeline, shape: VideoShape, frames: int) -> dict[str, Any]:
    """Return the values that, in addition to prompt and seed, determine a video, in the types of JSON."""
    return {
        **asdict(shape),
        "frames": frames,
        "clip_frames": shape.frames,
        **asdict(pipeline.schedule),
        "denoising_timesteps": list(pipeline.schedule.denoising_timesteps),
        "text_tokens": pipeline.config.text_tokens,
        "frames_per_block": pipeline.transformer.config.get("frames_per_block"),
        "weights": fingerprint(pipeline),
        "noise": NOISE,
    }


def fingerprint(pipeline: CausVidPipeline) -> str:
    """Return 16 hex digits of the SHA-256 checksum of all weights, so that a folder has videos of one model only."""
    digest = hashlib.sha256()
    for name in ("transformer", "vae", "text_encoder"):
        for key, value in sorted(getattr(pipeline, name).state_dict().items()):
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _sync(path: Path) -> None:
    """Flush a file to disk before the map lists it, so that listed files are complete after a power failure."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
