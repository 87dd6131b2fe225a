"""Build the training record of a model, and compare this record with the record of the initial weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.compute.precision import Precision
from causvid.data.stores.config import Source
from causvid.data.stores.latent_store import LatentStore
from causvid.data.stores.prompt_store import PromptStore
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.record import (
    FEW,
    FILE,
    MANY,
    CacheRule,
    Normalisation,
    StudentRecord,
    TeacherRecord,
    TrainingRecord,
    has_record,
    read_record,
    read_vae_config,
)
from causvid.runtime.shapes import VideoShape
from causvid.wan.formats.configs import latent_shape, strides

OTHER_VAE = "latents of another VAE (latents_mean and latents_std differ)"


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Description of the clips that a model is trained on.

    Attributes:
        video: Size of a clip: pixels, frames, frames per second.
        latents: Normalisation of the latents of the clips; None = unknown.
    """

    video: VideoShape
    latents: Normalisation | None


def clips_of(latents: Path, video: VideoShape, source: Source, *, vae: Path, config: Mapping[str, Any]) -> Clips:
    """Describe the clips whose latents, or solver states, are in the LMDB ``latents``.

    An LMDB that this run packed has latents of the VAE in ``vae``. An LMDB of the original CausVid code does not name
    its VAE; ``config`` then contains the normalisation.

    Args:
        latents: LMDB of rows [F, C, H, W] or [T, F, C, H, W].
        video: Params section ``video``.
        source: Origin of the LMDB: this run, or the original CausVid code.
        vae: Folder of the run's VAE.
        config: Params section ``model.vae``.

    Raises:
        ValueError: The clips in the LMDB have another size than ``video``, or the run has no VAE.
    """
    config = read_vae_config(vae) if source == Source.OURS else config
    temporal, spatial = strides(config)
    latent_channels = latent_shape(config, video).channels
    frames, channels, height, width = LatentStore(latents).metadata["shape"][-4:]
    for name, ours_is, theirs in (
        ("video.frames", video.frames, (frames - 1) * temporal + 1),
        ("video.height", video.height, height * spatial),
        ("video.width", video.width, width * spatial),
        ("model.vae.z_dim", latent_channels, channels),
    ):
        if ours_is != theirs:
            raise ValueError(f"{name} is {ours_is}; {latents} has {theirs}: pack it again, or set {name} to {theirs}")
    return Clips(video=video, latents=Normalisation.of(config))


def teacher_record(
    clips: Clips, shift: float, prompts: Path, precision: Precision, frames_per_block: int | None
) -> TeacherRecord:
    """Build the training record of a teacher that is trained on ``clips``.

    Args:
        clips: The training clips.
        shift: Shift of the timesteps.
        prompts: Folder of the prompt embeddings.
        precision: Precision of the matrix products.
        frames_per_block: Number of latent frames in a block of a causal teacher; None = the teacher is bidirectional.
    """
    return TeacherRecord(
        schedule=FlowSchedule(shift=shift),
        video=clips.video,
        text_tokens=PromptStore(prompts).tokens,
        frames_per_block=frames_per_block,
        precision=precision,
        latents=clips.latents,
    )


def student_record(
    clips: Clips, schedule: ScheduleConfig, prompts: Path, precision: Precision, frames_per_block: int | None
) -> StudentRecord:
    """Build the training record of a student. Without ``frames_per_block`` (None), the student is bidirectional."""
    return StudentRecord(
        schedule=schedule,
        video=clips.video,
        text_tokens=PromptStore(prompts).tokens,
        frames_per_block=frames_per_block,
        precision=precision,
        latents=clips.latents,
        cache=None if frames_per_block is None else CacheRule(),
    )


def require_same_training(folder: Path, record: TrainingRecord, *, steps: str) -> None:
    """Check that the model in ``folder`` can be the teacher, or the initial student, of a model with ``record``.

    Fields that are in both training records must be equal. Only frames_per_block may differ.

    Args:
        folder: Folder of a trained transformer.
        record: Training record of the model that is being trained.
        steps: ``"many"`` for a teacher, ``"few"`` for an initial student.

    Raises:
        ValueError: Some fields differ, or ``folder`` has no training record. The message contains both values of a
            field, and the remedy.
    """
    theirs = read_record(folder, steps=steps)
    theirs.require(folder, {name: v for name, v in record.values().items() if name != "model.frames_per_block"})
    if not _share_latents(theirs, record):
        raise ValueError(f"{folder} was trained on {OTHER_VAE}; train it again, on the latents of this run")


def check_origin(start: Path | None, record: TrainingRecord, *, stage: str, steps: int) -> None:
    """Compare the training record of initial weights with ``record``.

    If the weights are trained further, the size or the prompt length may differ; the differences are printed on stderr.
    If the weights are published unchanged, both training records must be equal except for frames_per_block. For weights
    without a training record, the values of ``record`` are assumed and printed.

    Args:
        start: Folder of the initial transformer from ``stage``.init; None if ``stage``.init has no folder.
        record: Training record of the model that starts from these weights.
        stage: Name of the params section.
        steps: Number of training steps; with 0, the weights are published unchanged.

    Raises:
        ValueError: ``steps`` is 0, and the training records differ, or a few-step model would become a teacher.
    """
    if start is None:
        return
    name = f"{stage}.init is {start}"
    if not has_record(start):
        print(
            f"{name}, which has no {FILE}; its weights are assumed to be trained for the values in params.yaml: "
            f"{record.describe()}",
            file=sys.stderr,
        )
        return
    theirs = read_record(start)
    if not steps and theirs.STEPS == FEW and record.STEPS == MANY:
        raise ValueError(
            f"{name}, which was trained for few steps, and {stage}.steps is 0; a teacher needs many steps: choose "
            f"another {stage}.init, or set {stage}.steps above 0"
        )
    differences = theirs.differences(record.values())
    if not _share_latents(theirs, record):
        differences.append(OTHER_VAE)
    # A causal model may start from a bidirectional teacher.
    wrong = [it for it in differences if not it.startswith("model.frames_per_block")]
    if wrong and not steps:
        raise ValueError(
            f"{name}, which was trained for {'; '.join(wrong)}, and {stage}.steps is 0: set these values as in "
            f"that training (for the VAE, train_vae.init.folder), or set {stage}.steps above 0"
        )
    if differences:
        print(f"{name}, which was trained for {'; '.join(differences)}", file=sys.stderr)


def _share_latents(one: TrainingRecord, other: TrainingRecord) -> bool:
    """Return whether the normalisations of both records are equal or unknown. None means unknown."""
    return one.latents is None or other.latents is None or one.latents.is_close(other.latents)
