"""The training record: a small JSON file beside a trained transformer's weights that says what it was trained for.

Every stage that trains a transformer writes it into the folder that it publishes. Everything that loads such a folder
samples by the record, not by the params file of the moment: another profile in params.yaml would otherwise change the
steps, the frame size or the prompt length of a finished model.

Weights from elsewhere (the hub, a released model.pt, a folder that another program wrote) have no record. They take
the values of the params file, and whoever loads them says so.
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
from causvid.data.prompt_store import require_tokens
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.runtime.device import Precision
from causvid.runtime.work import write_json
from causvid.shapes import VideoShape

T = TypeVar("T")
FILE = "training_record.json"  # beside config.json
MANY, FEW = "many", "few"  # steps that a model makes: a teacher's, a student's
# What CausVidPipeline's config, and so the model_index.json of a diffusers folder, says beside the models.
SETTINGS = (
    *(field.name for field in fields(ScheduleConfig)),
    *(field.name for field in fields(VideoShape)),
    "text_tokens",
    "precision",
)
# float16 latents cannot tell statistics apart that differ by less.
TOLERANCE = 1e-3
# The stages that write data/checkpoints/NAME.
MAKERS = {"teacher": "train_teacher", "ode_init": "train_ode_init", "dmd": "train_dmd"}


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How the VAE's raw latents become the transformer's: ``rule`` with a number per channel.

    Attributes:
        rule: "standardise" is (raw - mean) / std.
        mean: Per channel [C], of raw latents.
        std: Per channel [C], of raw latents.
    """

    rule: Literal["standardise"] = "standardise"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, vae: Mapping[str, Any]) -> Normalisation | None:
        """The normalisation in a VAE's config, diffusers' keys; None when it has no statistics."""
        mean, std = vae.get("latents_mean"), vae.get("latents_std")
        return None if mean is None or std is None else cls(mean=tuple(mean), std=tuple(std))

    def is_close(self, other: Normalisation) -> bool:
        """Whether latents of either are latents of the other, to the rounding of float16."""
        pairs = [*zip(self.mean, other.mean, strict=False), *zip(self.std, other.std, strict=False)]
        close = all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs)
        return close and (self.rule, len(self.mean), len(self.std)) == (other.rule, len(other.mean), len(other.std))


@dataclass(frozen=True, kw_only=True)
class CacheRule:
    """How finished blocks enter the KV cache of a causal student.

    Attributes:
        rule: "clean_pass" is one more forward pass over the finished block, without noise, at the time
            ``schedule.context_timestep``; its keys and values stay in the cache.
        window_frames: Latent frames that the cache holds; None = all of a clip.
        sink_frames: First latent frames of the video that a window never drops.
    """

    rule: Literal["clean_pass"] = "clean_pass"
    window_frames: PositiveInt | None = None
    sink_frames: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a teacher and a student both say.

    Attributes:
        schedule: Of the times in training: a student's few steps, or the shift of a teacher's times.
        video: Clips that the model was trained on: pixels, frames, frames per second.
        text_tokens: Tokens to which prompts were padded.
        frames_per_block: Latent frames in a block of a causal model; None = bidirectional.
        precision: Of the matrix products in training.
        latents: Normalisation of the latents; None = unknown, they came from a released LMDB and ``model.vae`` has no
            statistics.
    """

    STEPS: ClassVar[str]

    schedule: FlowSchedule | ScheduleConfig
    video: VideoShape
    text_tokens: PositiveInt
    frames_per_block: PositiveInt | None
    precision: Precision
    latents: Normalisation | None

    def values(self) -> dict[str, Any]:
        """Its fields under the names that they have in a params file."""
        named = values_of(self.schedule, self.video, self.text_tokens, self.precision)
        return {**named, "model.frames_per_block": self.frames_per_block}

    def differences(self, expected: Mapping[str, Any]) -> list[str]:
        """One phrase for every field that ``expected``, named as in ``values``, has otherwise."""
        ours = self.values()
        return [
            f"{name} {_shown(ours[name])}, not {_shown(value)}"
            for name, value in expected.items()
            if name in ours and ours[name] != value
        ]

    def describe(self) -> str:
        """All fields of ``values`` in one line."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.values().items())

    def require(self, folder: Path, expected: Mapping[str, Any]) -> None:
        """Refuse ``folder``, whose record this is, for a run with other values.

        Args:
            folder: Where the model lies.
            expected: Values of the run, named as in ``values``. Names that the record has not are passed over: a
                teacher has no few steps.

        Raises:
            ValueError: With every field that differs, both values and the remedy.
        """
        if wrong := self.differences(expected):
            raise ValueError(
                f"{folder} was trained for {'; '.join(wrong)} as in this run: {_retrain(folder)}, or put the value back"
            )

    def require_vae(self, folder: Path, vae: Path) -> None:
        """Refuse to put the transformer of ``folder`` beside a VAE whose latents it was not trained on.

        Raises:
            ValueError: For other channels or other statistics, and for a folder that holds no VAE.
        """
        if self.latents is None:
            print(
                f"{folder} does not record the normalisation of its latents, which came from a released LMDB: {vae} is "
                "taken for their VAE",
                file=sys.stderr,
            )
        elif not self.fits(vae):
            raise ValueError(
                f"{folder} was trained on latents of another VAE than {vae}: their latents_mean and latents_std "
                f"differ; put its own VAE there, or {_retrain(folder)}"
            )

    def fits(self, vae: Path) -> bool:
        """Whether the VAE in the folder ``vae`` makes latents as this model knows them, as far as the record says."""
        found = Normalisation.of(read_vae_config(vae))
        return self.latents is None or (found is not None and self.latents.is_close(found))


@dataclass(frozen=True, kw_only=True)
class TeacherRecord(TrainingRecord):
    """A model of many steps. How many, and with which guidance, is chosen when it samples.

    Attributes:
        schedule: Its shift is that of the times in training.
    """

    STEPS = MANY

    schedule: FlowSchedule


@dataclass(frozen=True, kw_only=True)
class StudentRecord(TrainingRecord):
    """A model of few steps.

    Attributes:
        schedule: The few steps, and the solver's grid that they are states of.
        cache: How finished blocks enter the KV cache; None for a bidirectional student.
    """

    STEPS = FEW

    schedule: ScheduleConfig
    cache: CacheRule | None

    def __post_init__(self) -> None:
        if (self.cache is None) != (self.frames_per_block is None):
            raise ValueError(
                f"cache is {self.cache} and frames_per_block is {self.frames_per_block}; a causal student has both, a "
                "bidirectional one neither"
            )


def values_of(
    schedule: FlowSchedule | ScheduleConfig, video: VideoShape, text_tokens: int, precision: Precision
) -> dict[str, Any]:
    """What a run and a record can disagree in, under the names that it has in a params file."""
    return {
        **{f"schedule.{name}": value for name, value in asdict(schedule).items()},
        **{f"video.{name}": value for name, value in asdict(video).items()},
        "model.text_tokens": text_tokens,
        "model.precision": str(precision),
    }


def settings(record: TeacherRecord | StudentRecord, chosen: ScheduleConfig) -> dict[str, Any]:
    """The pipeline's ``SETTINGS`` for the model of ``record``.

    A student samples by the schedule that it was trained for. A teacher samples by ``chosen``.
    """
    return {
        **asdict(record.schedule if isinstance(record, StudentRecord) else chosen),
        **asdict(record.video),
        "text_tokens": record.text_tokens,
        "precision": str(record.precision),
    }


def student_of_params(params: Path) -> StudentRecord:
    """The record that a student of the params file ``params`` would have, for weights that come without one.

    Its latents are those of whatever VAE lies beside it. Raises ValueError as ``params.section`` does.
    """
    blocks = params_file.section(params, "model.frames_per_block", int | None)  # type: ignore[arg-type]  # a union is no type[T]
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
    """The record of a student whose pipeline has the ``SETTINGS`` in ``found``, which its user knows as ``name``.

    Its latents are those of the VAE in the same pipeline. Raises ValueError for a value that cannot be.
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
    """Write ``folder``/training_record.json: sorted keys, no path and no date, so its bytes depend on values only."""
    write_json(folder / FILE, {"steps": record.STEPS, **asdict(record)})


def has_record(folder: Path) -> bool:
    """Whether ``folder`` says what its model was trained for."""
    return (folder / FILE).is_file()


def read_record(folder: Path, *, steps: str | None = None) -> TeacherRecord | StudentRecord:
    """The record of the model in ``folder``.

    Args:
        folder: A trained transformer's.
        steps: Steps that the caller will let the model make, many or few; None = those that it was trained for.

    Raises:
        ValueError: When there is none, with the stage to run again; when it is damaged or has fields or values that
            this version does not know, naming them; when the model was not trained for ``steps``.
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
    """The record of a model of few steps. Raises ValueError for a teacher, and as ``read_record`` does."""
    record = read_record(folder, steps=FEW)
    assert isinstance(record, StudentRecord)
    return record


def read_vae_config(folder: Path) -> dict[str, Any]:
    """The config.json of a VAE, diffusers' keys. Raises ValueError for a folder without one."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no VAE: its config.json cannot be read ({error})") from error


def _retrain(folder: Path) -> str:
    stage = MAKERS.get(folder.name) if folder.absolute().parent.name == "checkpoints" else None
    return f"run 'dvc repro {stage}'" if stage else "train it again"


def _shown(value: Any) -> str:
    """A value as a params file has it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value)
