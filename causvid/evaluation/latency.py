"""Measure the latency of the first frame and the frames per second of teacher and student in one process."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from causvid.compute import device as devices
from causvid.evaluation.config import LatencyConfig
from causvid.harness.machine import OtherLoad
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import VideoShape

if TYPE_CHECKING:  # the import of diffusers takes seconds, and params are checked without diffusers
    from causvid.pipeline import CausVidPipeline

SPEEDS = ("first_frame_s", "fps")  # results of a model that describe its speed for a viewer


class Timing(NamedTuple):
    """Times of the parts of one video. A part is a block of a causal model, or the clip of a bidirectional model.

    Attributes:
        ready_s: Seconds from the start until each part was decoded.
        frames: Number of frames of each part.
    """

    ready_s: list[float]
    frames: list[int]


def measure(
    pipeline: CausVidPipeline,
    text: torch.Tensor,
    negative: torch.Tensor,
    video: VideoShape,
    guidance_scale: float,
    seed: int,
    few_steps: bool,
) -> Timing:
    """Measure the seconds until each part of one video is decoded, without text encoding.

    Args:
        pipeline: Pipeline of the model.
        text: Prompt embeddings [1, L, D].
        negative: Embeddings of the negative prompt [1, L, D].
        video: Size of the video.
        guidance_scale: Guidance scale of the solver; not used if ``few_steps`` is True.
        seed: Seed of the noise.
        few_steps: Whether the model generates with few steps, as in ``CausVidPipeline.__call__``.
    """
    noise = [generator(seed, "latency")]
    devices.synchronize(pipeline.device)
    started, ready, frames = time.perf_counter(), [], []
    if pipeline.is_causal:
        parts = pipeline.stream(text, video, noise, None, negative, guidance_scale, few_steps=few_steps)
    else:  # no frame is available before the whole clip is denoised
        parts = iter([pipeline(text, video, noise, negative, guidance_scale, few_steps=few_steps)])
    for part in parts:
        devices.synchronize(pipeline.device)
        ready.append(time.perf_counter() - started)
        frames.append(part.shape[1])
    return Timing(ready_s=ready, frames=frames)


def compare(
    teacher: CausVidPipeline,
    student: CausVidPipeline,
    *,
    text: torch.Tensor,
    negative: torch.Tensor,
    video: VideoShape,
    guidance_scale: float,
    seed: int,
    config: LatencyConfig,
) -> dict[str, Any]:
    """Time teacher and student alternately, so that other load on the machine affects both models.

    Args:
        teacher: Pipeline of the teacher, which generates with many steps.
        student: Pipeline of the student, which generates with few steps.
        text: Prompt embeddings [1, L, D].
        negative: Embeddings of the negative prompt [1, L, D].
        video: Size of the video.
        guidance_scale: Guidance scale of the teacher.
        seed: Seed of the noise.
        config: Number of runs.

    Returns:
        A dictionary. ``device`` is the name of the device. ``other_load`` is the mean number of cores that other
        processes used. ``teacher`` and ``student`` map ``first_frame_s``, ``seconds`` and ``ready_s`` (a list, as in
        ``Timing``) to medians, ``frames`` to the number of frames of each
        part, ``fps`` to frames per second, and ``passes`` to the number of forward passes over each frame (a step with
        guidance has two forward passes; context passes are not counted). ``ratio`` maps ``first_frame`` and ``fps`` to
        the factors by which the student is faster.
    """
    runs: dict[str, list[Timing]] = {"teacher": [], "student": []}
    load = OtherLoad()
    for index in range(config.warmup + config.repeats):
        for name, pipeline in (("teacher", teacher), ("student", student)):
            measured = measure(pipeline, text, negative, video, guidance_scale, seed, name == "student")
            if index >= config.warmup:
                runs[name].append(measured)
    results: dict[str, Any] = {"device": devices.describe(teacher.device), "other_load": load.cores()}
    passes = {
        "teacher": teacher.config.solver_steps * (1 if guidance_scale == 1 else 2),
        "student": len(student.config.denoising_timesteps),
    }
    for name, timings in runs.items():
        ready = [statistics.median(times) for times in zip(*(timing.ready_s for timing in timings), strict=True)]
        results[name] = {
            "first_frame_s": ready[0],
            "seconds": ready[-1],
            "ready_s": ready,
            "frames": timings[0].frames,
            "fps": video.frames / ready[-1],
            "passes": passes[name],
        }
    results["ratio"] = {
        "first_frame": results["teacher"]["first_frame_s"] / results["student"]["first_frame_s"],
        "fps": results["student"]["fps"] / results["teacher"]["fps"],
    }
    return results
