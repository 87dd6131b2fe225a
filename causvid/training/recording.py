"""From the data of a training to the record of its model: clips, their latents, and weights to start from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid.data.latent_store import LatentStore
from causvid.data.prompt_store import PromptStore
from causvid.diffusion.schedule import ScheduleConfig
from causvid.record import (
    FILE,
    CacheRule,
    Normalisation,
    StudentRecord,
    TrainingRecord,
    has_record,
    read_record,
    read_vae_config,
)
from causvid.runtime.device import Precision
from causvid.shapes import LatentShape, VideoShape

STRIDES = {"scale_factor_temporal": 4, "scale_factor_spatial": 8}  # diffusers' own, of configs that leave them out
OTHER_VAE = "latents of another VAE (latents_mean and latents_std differ)"


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips whose latents a model is trained on.

    Attributes:
        video: Their size in pixels, frames and frames per second.
        latents: How their VAE normalised them; None = unknown.
    """

    video: VideoShape
    latents: Normalisation | None


def clips_of(section: Callable[[str, Any], Any], latents: Path, *, item: str, vae: Path) -> Clips:
    """The clips whose latents, or solver states, the LMDB ``latents`` holds.

    Args:
        section: (name, class) -> that params section: ``video``, and what says which VAE made the latents. That is the
            one in ``vae`` when the LMDB was packed from our shards. A released LMDB does not name its VAE and takes
            the values of ``model.vae``.
        latents: LMDB of rows [F, C, H, W] or [T, F, C, H, W].
        item: Its name in the params section ``pack_lmdb``.
        vae: The run's VAE.

    Raises:
        ValueError: When the LMDB holds clips of another size than ``video``, naming the field; when our shards have no
            VAE.
    """
    ours = section(f"pack_lmdb.{item}.source", str) == "ours"
    config = STRIDES | (read_vae_config(vae) if ours else section("model.vae", dict[str, Any]))
    video = section("video", VideoShape)
    in_time, in_space = config["scale_factor_temporal"], config["scale_factor_spatial"]
    LatentShape.of(video, channels=config["z_dim"], temporal_stride=in_time, spatial_stride=in_space)
    frames, channels, height, width = LatentStore(latents).metadata["shape"][-4:]
    for name, ours_is, theirs in (
        ("video.frames", video.frames, (frames - 1) * in_time + 1),
        ("video.height", video.height, height * in_space),
        ("video.width", video.width, width * in_space),
        ("model.vae.z_dim", config["z_dim"], channels),
    ):
        if ours_is != theirs:
            raise ValueError(f"{name} is {ours_is}; {latents} has {theirs}: pack it again, or set {name} to {theirs}")
    return Clips(video=video, latents=Normalisation.of(config))


def student_record(
    clips: Clips, schedule: ScheduleConfig, prompts: Path, precision: Precision, frames_per_block: int | None
) -> StudentRecord:
    """The record of a student that is trained on ``clips``; frames_per_block: None = bidirectional."""
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
    """Refuse the finished model in ``folder`` as teacher or start of the one that will have ``record``.

    Fields that both have must be equal, but for frames_per_block: a teacher has its own.

    Args:
        folder: A trained transformer's.
        record: Of the model that is trained now.
        steps: Steps that the model in ``folder`` must make: many for a teacher, few for a start.

    Raises:
        ValueError: Naming what differs, both values and the remedy; when ``folder`` has no record.
    """
    theirs = read_record(folder, steps=steps)
    theirs.require(folder, {name: v for name, v in record.values().items() if name != "model.frames_per_block"})
    if not _share_latents(theirs, record):
        raise ValueError(f"{folder} was trained on {OTHER_VAE}; train it again, on the latents of this run")


def tell_origin(start: Path | None, record: TrainingRecord, *, stage: str, steps: int) -> None:
    """Compare what initial weights were trained for with ``record``.

    Training may go on at another size or prompt length; stderr then names the differences. Weights that are taken as
    they are must agree. Weights without a record take the values of ``record``, which are printed.

    Args:
        start: Folder of the transformer that ``stage``.init names; None = there is none.
        record: Of the model that is trained from them.
        stage: Params section.
        steps: Training steps; 0 takes the weights as they are.

    Raises:
        ValueError: For weights that differ and would not be trained on.
    """
    if start is None:
        return
    name = f"{stage}.init is {start}"
    if not has_record(start):
        print(
            f"{name}, which has no {FILE}; its weights are taken to be trained for the values in params.yaml: "
            f"{record.describe()}",
            file=sys.stderr,
        )
        return
    theirs = read_record(start)
    differences = theirs.differences(record.values())
    if not _share_latents(theirs, record):
        differences.append(OTHER_VAE)
    # A student of blocks may begin as a bidirectional teacher: blocks are what it changes.
    wrong = [it for it in differences if not it.startswith("model.frames_per_block")]
    if wrong and not steps:
        raise ValueError(
            f"{name}, which was trained for {'; '.join(wrong)}, and {stage}.steps is 0: set these values as they "
            f"were (of the VAE, train_vae.init.folder), or {stage}.steps above 0"
        )
    if differences:
        print(f"{name}, which was trained for {'; '.join(differences)}", file=sys.stderr)


def _share_latents(one: TrainingRecord, other: TrainingRecord) -> bool:
    """Whether both were trained on latents of one VAE, as far as they know."""
    return one.latents is None or other.latents is None or one.latents.is_close(other.latents)
