"""Prompts into mp4s in a folder that says what each of them shows, and that a stopped run goes on in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from causvid.data.video_writer import write_video
from causvid.pipeline import CausVidPipeline
from causvid.runtime.progress import progress
from causvid.runtime.prompt_list import prompt_list
from causvid.runtime.seeding import generator
from causvid.runtime.work import write_json
from causvid.shapes import VideoShape

MAP = "videos.json"
CRF = 16  # x264's quality of the mp4s


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
        made = pipeline.rollout(text, shape, noise, frames, few_steps=True)
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
) -> dict[str, int]:
    """Write ``out``/INDEX-seedN.mp4 for every prompt and seed, and ``out``/videos.json: which file shows what.

    Videos that are there already are kept, so a run that was stopped goes on. shape: of a clip the model makes at once;
    seconds: the videos' length, None = a clip's. Raises ValueError when ``out`` holds videos of other settings, or
    another process is writing there.
    """
    frames = _frames_of(seconds, shape, is_causal=pipeline.is_causal)
    pipeline.latent_shape(shape)  # raises for a size it cannot hold
    settings = _settings_of(pipeline, shape, frames)
    wanted = [
        Video(index=i, prompt=prompt, seed=seed) for i, prompt in enumerate(prompt_list(prompts)) for seed in seeds
    ]
    with _held(out):
        done = _read_map(out, settings)
        for video in wanted:
            if video.name in done and done[video.name] != video:
                shown = done[video.name].prompt
                raise ValueError(f"{out / video.name} shows {shown!r}, not {video.prompt!r}; choose another --out")
        missing = [video for video in wanted if video.name not in done or not _has_bytes(out / video.name)]
        try:
            for video in progress(missing, total=len(missing), what="generate"):
                write_video(out / video.name, make_video(pipeline, video, shape, frames), fps=shape.fps, crf=CRF)
                done[video.name] = video
                write_json(out / MAP, {"settings": settings, "videos": {n: asdict(v) for n, v in done.items()}})
        except OSError as error:
            raise ValueError(f"--out {out} cannot be written into ({error}); the same command goes on there") from error
    return {"videos": len(wanted), "made": len(missing)}


def _frames_of(seconds: float | None, shape: VideoShape, *, is_causal: bool) -> int:
    if seconds is None:
        return shape.frames
    if not math.isfinite(seconds) or round(seconds * shape.fps) < 1:
        raise ValueError(f"--seconds is {seconds}; at {shape.fps} fps it must be {1 / shape.fps:g} at least, one frame")
    frames = round(seconds * shape.fps)
    if frames > shape.frames and not is_causal:
        raise ValueError(
            f"--seconds is {seconds}, {frames} frames at {shape.fps} fps; a bidirectional student makes {shape.frames} "
            "at most"
        )
    return frames


def _settings_of(pipeline: CausVidPipeline, shape: VideoShape, frames: int) -> dict[str, Any]:
    """What a video depends on beside prompt, index and seed, as JSON has it."""
    return {
        **asdict(shape),
        "frames": frames,
        "clip_frames": shape.frames,
        **asdict(pipeline.schedule),
        "denoising_timesteps": list(pipeline.schedule.denoising_timesteps),
        "text_tokens": pipeline.config.text_tokens,
        "frames_per_block": pipeline.transformer.config.get("frames_per_block"),
        "weights": fingerprint(pipeline),
    }


def fingerprint(pipeline: CausVidPipeline) -> str:
    """16 hex digits of the sha256 of every weight: one model must not go on with another's videos."""
    digest = hashlib.sha256()
    for name in ("transformer", "vae", "text_encoder"):
        for key, value in sorted(getattr(pipeline, name).state_dict().items()):
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """``out`` made and held against other processes. Raises ValueError when it cannot be, or is held already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", blocking=False)
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process writes into {out}; wait for it or choose another --out") from error
    except OSError as error:
        raise ValueError(f"--out is {out}, which cannot be written into ({error})") from error
    try:
        yield
    finally:
        lock.release()


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _read_map(out: Path, settings: dict[str, Any]) -> dict[str, Video]:
    """What ``out`` holds already. Raises ValueError for other settings than ``settings``, naming the first."""
    if not (out / MAP).is_file():
        return {}
    try:
        found = json.loads((out / MAP).read_text(encoding="utf-8"))
        before, videos = dict(found["settings"]), {name: Video(**row) for name, row in found["videos"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{out / MAP} is not a map of videos ({error!r}); choose another --out") from error
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            was, now = before.get(name), settings.get(name)
            raise ValueError(f"{out} holds videos made with {name} {was}, not {now}; choose another --out")
    return videos
