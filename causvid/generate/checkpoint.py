"""Find a checkpoint, its settings and the folders that belong to it. This module imports no torch.

The command thus refuses a wrong path at once, before it imports torch and diffusers. The kind of the checkpoint
determines the source of the settings (schedule, sizes and prompt length):

- For a folder that a stage trained, the settings are read from the training record. The folders of the VAE and the text
  encoder are beside the folder of the transformer.
- For a diffusers folder that ``causvid export`` created, the settings are read from model_index.json.
- For other weights (a ``model.pt`` of the original CausVid code, or a folder of a transformer without a training
  record), the settings are read from a params file and printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causvid import params as params_file
from causvid.interop.layouts import LAYOUT, require_known_layout
from causvid.record import FILE, MAKERS, SETTINGS, StudentRecord, has_record, read_record, student_of_params

PARAMS = Path("params.yaml")  # default params file for weights without a training record


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A diffusers folder that ``causvid export`` created.

    Attributes:
        folder: The folder.
        index: Content of its model_index.json, which has all ``SETTINGS``.
        params: Params file of the user, whose settings must be equal; None = none.
    """

    folder: Path
    index: dict[str, Any]
    params: Path | None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A folder with a transformer in diffusers' format.

    Attributes:
        folder: The folder.
        vae: Folder of the VAE.
        text: Folder that contains text_encoder/ and tokenizer/.
        record: Training record of the transformer.
        said_by: Name of the file from which the record was read, for error messages.
    """

    folder: Path
    vae: Path
    text: Path
    record: StudentRecord
    said_by: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """A model.pt of the original CausVid code.

    Attributes:
        file: The file.
        wan: The Wan2.1 folder.
        params: Params file with the settings.
        model: Section ``model`` of ``params``.
        record: Training record with the settings of ``params``.
    """

    file: Path
    wan: Path
    params: Path
    model: dict[str, Any]
    record: StudentRecord


def find_checkpoint(checkpoint: Path, *, params: Path | None, wan: Path | None) -> Exported | Trained | Released:
    """Find a checkpoint of one of the kinds in the docstring of this module.

    Links are followed only to read files. If ``checkpoint`` is a link, the VAE and the text encoder are searched beside
    the link before they are searched beside the target of the link.

    Args:
        checkpoint: The checkpoint.
        params: Params file. For weights without a training record, the settings are read from this file; None =
            params.yaml. If the checkpoint stores settings, the settings in this file must be equal.
        wan: Wan2.1 folder for a model.pt; None = the Wan2.1 folder beside the model.pt.

    Raises:
        ValueError: The checkpoint is of no known kind, is a teacher, was trained with other settings than those in
            ``params``, or has no VAE or text encoder.
    """
    places = list(_places(checkpoint))
    place = places[0]
    try:
        require_known_layout(place)
        if (place / "model_index.json").is_file():
            return _exported(place, params)
        if place.is_file():
            return _released(places, params or PARAMS, wan)
        if (place / "config.json").is_file():
            return _trained(places, params)
    except OSError as error:
        raise ValueError(f"--checkpoint {checkpoint} cannot be read: {error}") from error
    raise ValueError(
        f"--checkpoint is {place}{'' if place.exists() else ', which does not exist'}; it must be a folder with "
        "config.json (trained by this project), a model.pt of the original CausVid code, or a diffusers folder with "
        "model_index.json"
    )


def require_agreement(folder: Path, record: StudentRecord, params: Path | None) -> None:
    """Raise ValueError if the user gave a params file whose settings differ from the settings in the checkpoint."""
    wrong = record.differences(student_of_params(params).values()) if params else []
    if wrong:
        raise ValueError(
            f"--params is {params}, but {folder} was trained for {'; '.join(wrong)}; omit --params, because the folder "
            "contains these values"
        )


def _places(path: Path) -> Iterator[Path]:
    """Yield the absolute form of ``path``, then the target of each link. Raises ValueError for a broken link."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"--checkpoint is {path}, a link to {path.readlink()}, which does not exist; repair the link")
    while True:
        # A path that ends in "." or ".." has no name to keep.
        path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def _exported(folder: Path, params: Path | None) -> Exported:
    try:
        index = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}/model_index.json is damaged ({error}); export the pipeline again") from error
    if missing := [name for name in SETTINGS if name not in index]:
        raise ValueError(
            f"{folder} holds a {index.get('_class_name')} whose model_index.json lacks {', '.join(missing)}; give a "
            "few-step student that 'causvid export' created"
        )
    return Exported(folder=folder, index=index, params=params)


def _trained(places: Sequence[Path], params: Path | None) -> Trained:
    folder, beside = places[0], _beside(places)
    if has_record(folder):
        record, said_by = _student(folder), str(folder / FILE)
        record.require_vae(folder, beside / "vae")
        require_agreement(folder, record, params)
    elif _was_trained_here(folder, beside):
        raise ValueError(
            f"{folder} has no {FILE}: an older version trained this model. Train the model again ('dvc repro "
            "train_dmd' writes data/checkpoints/dmd). If another program wrote the weights, put text_encoder/ and "
            "tokenizer/ in diffusers' layout beside the folder"
        )
    else:
        record, said_by = _record_of_params(folder, params or PARAMS), f"{params or PARAMS}: model"
    text = beside / "text_encoder"
    return Trained(
        folder=folder, vae=beside / "vae", text=text if _is_ours(text) else beside, record=record, said_by=said_by
    )


def _student(folder: Path) -> StudentRecord:
    """Read the training record of a student. For a teacher, raise ValueError with the student to use instead."""
    record = read_record(folder)
    if isinstance(record, StudentRecord):
        return record
    others = [folder.with_name(name) for name in reversed(MAKERS)]
    student = next((other for other in others if _is_student(other)), None)
    if student is None:
        remedy = "train a student with 'dvc repro train_dmd', which writes data/checkpoints/dmd"
    else:
        here = Path.cwd()
        remedy = f"use --checkpoint {student.relative_to(here) if student.is_relative_to(here) else student}"
    raise ValueError(
        f"--checkpoint is {folder}, a teacher, which needs many steps; causvid generates with students, which need few "
        f"steps: {remedy}"
    )


def _is_student(folder: Path) -> bool:
    try:
        return has_record(folder) and isinstance(read_record(folder), StudentRecord)
    except ValueError:  # the record is damaged
        return False


def _beside(places: Sequence[Path]) -> Path:
    """Return the folder that contains the VAE and the text encoder. Raises ValueError if either of them is missing."""
    parts = {"vae": "train_vae", "text_encoder": "encode_prompts"}
    for place in places:
        if all((place.parent / part).is_dir() for part in parts):
            return place.parent
    folder = places[0]
    part, stage = next((part, stage) for part, stage in parts.items() if not (folder.parent / part).is_dir())
    raise ValueError(
        f"{folder} needs {folder.parent / part} beside it, which the stage {stage} writes; for a model.pt of the "
        "original CausVid code, give the path of the file, which must be beside its Wan2.1 folder"
    )


def _was_trained_here(folder: Path, beside: Path) -> bool:
    """Return whether a stage of this project wrote ``folder``, although the folder has no training record.

    A text encoder in text_encoder/text_encoder was written by the stage encode_prompts. A folder with the file
    original_layout.json was imported.
    """
    return _is_ours(beside / "text_encoder") and not (folder / LAYOUT).is_file()


def _is_ours(text_encoder: Path) -> bool:
    """Return whether the stage encode_prompts wrote ``text_encoder``, with encoder and tokenizer in subfolders."""
    return (text_encoder / "text_encoder").is_dir()


def _released(places: Sequence[Path], params: Path, wan: Path | None) -> Released:
    wan = wan or _wan_beside(places)
    model = params_file.read(params)["model"]
    record = _record_of_params(places[0], params)
    return Released(file=places[0], wan=wan, params=params, model=model, record=record)


def _wan_beside(places: Sequence[Path]) -> Path:
    """Return the Wan2.1 folder beside a model.pt or, if model.pt is a link, beside the target. Raises ValueError."""
    for place in places:
        found = sorted(path for path in place.parent.glob("Wan2.1*") if path.is_dir())
        if len(found) == 1:
            return found[0]
        if found:
            break
    names = ", ".join(path.name for path in found) or "none"
    raise ValueError(f"{places[0]} needs one Wan2.1 folder beside it (found: {names}); name it with --wan-folder")


def _record_of_params(checkpoint: Path, params: Path) -> StudentRecord:
    """Build a record from the params file, for weights without a training record, and print its values on stderr."""
    record = student_of_params(params)
    print(f"{checkpoint} has no training record; values of {params}: {record.describe()}", file=sys.stderr)
    return record
