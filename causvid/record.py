"""The training record is a small JSON file beside the weights of a transformer. It contains values of the training.

Every stage that trains a transformer writes a training record into the folder that the stage publishes. Code that loads
such a folder reads the values from the training record, not from the current params.yaml. Otherwise a change of profile
would change the steps, the frame size or the prompt length of a finished model.

Weights from other sources have no training record: weights from the hub, a model.pt of the original CausVid code, or a
folder that another program wrote. The loader then uses the values of the params file and prints these values.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from causvid import params as params_file
from causvid.compute.precision import Precision
from causvid.data.stores.config import require_tokens
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.runtime.files import write_json
from causvid.runtime.shapes import VideoShape
from causvid.wan.formats.configs import latent_statistics

T = TypeVar("T")
FILE = "training_record.json"  # in the folder of config.json
MANY, FEW = "many", "few"  # kinds of sampling: a teacher needs many steps, a student few steps
# Names of the values in the config of CausVidPipeline, which diffusers saves in model_index.json.
SETTINGS = (
    *(field.name for field in fields(ScheduleConfig)),
    *(field.name for field in fields(VideoShape)),
    "text_tokens",
    "precision",
)
# Latent statistics whose relative or absolute difference is smaller give the same latents in float16.
TOLERANCE = 1e-3
# Maps NAME of data/checkpoints/NAME to the stage that writes the folder.
MAKERS = {
    "teacher": "train_teacher",
    "causal_teacher": "train_causal_teacher",
    "ode_init": "train_ode_init",
    "dmd": "train_dmd",
}


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Normalisation of the VAE's raw latents, which gives the input of the transformer.

    Attributes:
        rule: "standardise" is (raw - mean) / std.
        mean: Mean of the raw latents in each channel [C].
        std: Standard deviation of the raw latents in each channel [C].
    """

    rule: Literal["standardise"] = "standardise"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, vae: Mapping[str, Any]) -> Normalisation | None:
        """Return the normalisation in the config of a diffusers VAE; None if the config has no statistics."""
        statistics = latent_statistics(vae)
        return None if statistics is None else cls(mean=tuple(statistics[0]), std=tuple(statistics[1]))

    def is_close(self, other: Normalisation) -> bool:
        """Return whether both normalisations give the same latents, up to the rounding of float16."""
        pairs = [*zip(self.mean, other.mean, strict=False), *zip(self.std, other.std, strict=False)]
        close = all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs)
        return close and (self.rule, len(self.mean), len(self.std)) == (other.rule, len(other.mean), len(other.std))


@dataclass(frozen=True, kw_only=True)
class CacheRule:
    """The rule by which finished blocks enter the KV cache of a causal student.

    Attributes:
        rule: "clean_pass" is the context pass: a forward pass over the finished block at the timestep
            ``schedule.context_timestep``, whose keys and values stay in the cache.
        window_frames: Number of latent frames in the cache; None = all latent frames of a clip.
        sink_frames: Number of first latent frames of the video that are never removed from the cache.
    """

    rule: Literal["clean_pass"] = "clean_pass"
    window_frames: PositiveInt | None = None
    sink_frames: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The fields that the training records of teachers and students share.

    Attributes:
        schedule: Timesteps of the training: the few steps of a student, or only the timestep shift of a teacher.
        video: Size of the training clips: pixels, frames, frames per second.
        text_tokens: Number of tokens to which prompts were padded.
        frames_per_block: Number of latent frames in a block of a causal model; None = bidirectional.
        precision: Precision of the matrix products in training.
        latents: Normalisation of the latents. None means that the normalisation is unknown: the latents are from an
            LMDB of the original CausVid code, and ``model.vae`` has no statistics.
    """

    STEPS: ClassVar[str]

    schedule: FlowSchedule | ScheduleConfig
    video: VideoShape
    text_tokens: PositiveInt
    frames_per_block: PositiveInt | None
    precision: Precision
    latents: Normalisation | None

    def values(self) -> dict[str, Any]:
        """Return the fields, keyed by their names in a params file."""
        named = values_of(self.schedule, self.video, self.text_tokens, self.precision)
        return {**named, "model.frames_per_block": self.frames_per_block}

    def differences(self, expected: Mapping[str, Any]) -> list[str]:
        """Return one phrase for each field that has another value in ``expected`` (keyed as in ``values``)."""
        ours = self.values()
        return [
            f"{name} {_shown(ours[name])}, not {_shown(value)}"
            for name, value in expected.items()
            if name in ours and ours[name] != value
        ]

    def describe(self) -> str:
        """Return the names and values of all fields in one line."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.values().items())

    def require(self, folder: Path, expected: Mapping[str, Any]) -> None:
        """Check that the model in ``folder``, which has this training record, was trained for the values of a run.

        Args:
            folder: Folder of the model.
            expected: Values of the run, keyed as in ``values``. Names that the record does not have are ignored. For
                example, a teacher has no denoising timesteps.

        Raises:
            ValueError: Some fields differ. The message contains the name and both values of each field, and the remedy.
        """
        if wrong := self.differences(expected):
            raise ValueError(
                f"{folder} was trained for {'; '.join(wrong)} as in this run: {_retrain(folder)}, or put the value back"
            )

    def require_vae(self, folder: Path, vae: Path) -> None:
        """Check that the transformer in ``folder`` was trained on latents of the VAE in ``vae``.

        Raises:
            ValueError: The latent channels or the statistics of the VAE differ, or ``vae`` contains no VAE.
        """
        if self.latents is None:
            print(
                f"{folder} does not record the normalisation of its latents, which came from a released LMDB; {vae} is "
                "assumed to be the VAE of these latents",
                file=sys.stderr,
            )
        elif not self.fits(vae):
            raise ValueError(
                f"{folder} was trained on latents of another VAE than {vae}: their latents_mean and latents_std "
                f"differ; replace {vae} by the VAE of the training, or {_retrain(folder)}"
            )

    def fits(self, vae: Path) -> bool:
        """Return whether this record has the normalisation of the VAE in ``vae``, or has no normalisation."""
        found = Normalisation.of(read_vae_config(vae))
        return self.latents is None or (found is not None and self.latents.is_close(found))


@dataclass(frozen=True, kw_only=True)
class TeacherRecord(TrainingRecord):
    """The training record of a teacher. Number of steps and guidance scale are chosen for sampling.

    Attributes:
        schedule: Shift of the timesteps in training.
    """

    STEPS = MANY

    schedule: FlowSchedule


@dataclass(frozen=True, kw_only=True)
class StudentRecord(TrainingRecord):
    """The training record of a student, which samples in few steps.

    Attributes:
        schedule: The few denoising timesteps, and the timesteps of the solver, which include them.
        cache: Rule of the KV cache; None for a bidirectional student.
    """

    STEPS = FEW

    schedule: ScheduleConfig
    cache: CacheRule | None

    def __post_init__(self) -> None:
        if (self.cache is None) != (self.frames_per_block is None):
            raise ValueError(
                f"cache is {self.cache} and frames_per_block is {self.frames_per_block}; a causal student has "
                "both values, a bidirectional student has neither"
            )


def values_of(
    schedule: FlowSchedule | ScheduleConfig, video: VideoShape, text_tokens: int, precision: Precision
) -> dict[str, Any]:
    """Return the values that are compared between a run and a training record, keyed by their names in params.yaml."""
    return {
        **{f"schedule.{name}": value for name, value in asdict(schedule).items()},
        **{f"video.{name}": value for name, value in asdict(video).items()},
        "model.text_tokens": text_tokens,
        "model.precision": str(precision),
    }


def settings(record: TeacherRecord | StudentRecord, chosen: ScheduleConfig) -> dict[str, Any]:
    """Return the values of ``SETTINGS`` for the pipeline of a model with ``record``.

    The schedule of a student is that of its training. The schedule of a teacher is ``chosen``.
    """
    return {
        **asdict(record.schedule if isinstance(record, StudentRecord) else chosen),
        **asdict(record.video),
        "text_tokens": record.text_tokens,
        "precision": str(record.precision),
    }


def student_of_params(params: Path) -> StudentRecord:
    """Build a training record from ``params``, for weights without a record. The normalisation stays unknown.

    Raises:
        ValueError: The params file is invalid, as in ``params.section``.
    """
    blocks = params_file.section(params, "model.frames_per_block", int | None)  # type: ignore[arg-type]  # a union is not a type[T]
    return StudentRecord(
        schedule=params_file.section(params, "schedule", ScheduleConfig),
        video=params_file.section(params, "video", VideoShape),
        text_tokens=require_tokens(params_file.section(params, "model.text_tokens", int)),
        frames_per_block=blocks,
        precision=params_file.section(params, "model.precision", Precision),
        latents=None,
        cache=None if blocks is None else CacheRule(),
    )


def student_of_settings(found: Mapping[str, Any], frames_per_block: int | None, *, name: str) -> StudentRecord:
    """Build a training record from the values of a pipeline's ``SETTINGS``. The normalisation stays unknown.

    Args:
        found: Values of ``SETTINGS``.
        frames_per_block: Number of latent frames in a block of the transformer; None = bidirectional.
        name: Name of the file that contains the settings, for error messages.

    Raises:
        ValueError: A setting has an invalid value.
    """

    def part(cls: type[T], names: Iterable[str]) -> T:
        return params_file.build(cls, {key: found[key] for key in names}, name=name)

    return StudentRecord(
        schedule=part(ScheduleConfig, (field.name for field in fields(ScheduleConfig))),
        video=part(VideoShape, (field.name for field in fields(VideoShape))),
        text_tokens=require_tokens(params_file.build(int, found["text_tokens"], name=f"{name}: text_tokens")),
        frames_per_block=frames_per_block,
        precision=params_file.build(Precision, found["precision"], name=f"{name}: precision"),
        latents=None,
        cache=None if frames_per_block is None else CacheRule(),
    )


def write_record(record: TrainingRecord, folder: Path) -> None:
    """Write ``folder``/training_record.json. The file has no path and no date, so that its bytes are reproducible."""
    write_json(folder / FILE, {"steps": record.STEPS, **asdict(record)})


def has_record(folder: Path) -> bool:
    """Return whether ``folder`` contains a training record."""
    return (folder / FILE).is_file()


def read_record(folder: Path, *, steps: str | None = None) -> TeacherRecord | StudentRecord:
    """Read the training record of the model in ``folder``.

    Args:
        folder: Folder of a trained transformer.
        steps: Kind of sampling that the caller needs, ``"many"`` or ``"few"``; None = any kind.

    Raises:
        ValueError: The folder has no training record, the record is damaged or has unknown fields, or the model was not
            trained for ``steps``.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}, which says what its model was trained for: {_retrain(folder)}")
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        kind = {MANY: TeacherRecord, FEW: StudentRecord}[found.pop("steps")]
        record: TeacherRecord | StudentRecord = params_file.build(kind, found, name=str(path))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged or of another version ({error}): {_retrain(folder)}") from error
    if steps not in (None, record.STEPS):
        raise ValueError(
            f"{folder} was trained for {record.STEPS} steps (teacher: many, student: few), not for {steps}"
        )
    return record


def read_student(folder: Path) -> StudentRecord:
    """Read the training record of a student. Raises ValueError if ``read_record`` does, or for a teacher."""
    record = read_record(folder, steps=FEW)
    assert isinstance(record, StudentRecord)
    return record


def read_vae_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a VAE in diffusers' format. Raises ValueError if the folder has none."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no VAE: its config.json cannot be read ({error})") from error


def _retrain(folder: Path) -> str:
    stage = MAKERS.get(folder.name) if folder.absolute().parent.name == "checkpoints" else None
    return f"run 'dvc repro {stage}'" if stage else "train it again"


def _shown(value: Any) -> str:
    """Return ``value`` as text, as it appears in a params file."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value)
