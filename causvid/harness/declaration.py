"""Declare a stage as a dataclass whose fields are the paths and the params that the stage uses.

The fields define the command line with the help texts, the key of the stage's work, and the required content of
dvc.yaml. Each path and each params section is thus declared only once:

    @dataclass(frozen=True, kw_only=True)
    class Resample(Stage):
        \"\"\"Convert every video to a clip of the profile's size, rate and frame count.\"\"\"

        raw: Annotated[Path, Reads("folder of videos with a manifest")]
        out: Annotated[Path, Writes("folder of clips")]
        metrics: Annotated[Path, Metrics()]
        video: Annotated[VideoShape, Section("video")]

        def run(self, stage: StageRun) -> None:
            with importing():  # the command answers a wrong option before this import
                from causvid.data.resampling.clips import resample_folder
            ...

    main = command(Resample)

    if __name__ == "__main__":
        run("resample", main)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_type_hints

import typer

from causvid.harness.stage import StageRun, stage_run
from causvid.params import PathRule, paths_in

PARAMS = Path("params.yaml")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Base class of the stages. The docstring of a stage is its description in dvc.yaml and in ``--help``.

    Attributes:
        HEADLINE: Format strings of the main numbers that the stage reports, for the line of the finished stage.
    """

    HEADLINE: ClassVar[Sequence[str]] = ()

    def run(self, stage: StageRun) -> None:
        """Do the work of the stage. ``stage`` contains the work folder, and publishes and reports the results."""
        raise NotImplementedError

    @classmethod
    def name(cls) -> str:
        """Return the name of the stage in dvc.yaml: the name of the class in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def user_paths(cls, item: str | None) -> dict[str, PathRule]:
        """Return rules for the paths in params.yaml that are inputs of the stage for ``item``, keyed by dotted name."""
        return dict(path for it in declared(cls, Section) for path in paths_in(it.type, it.role.name))


@dataclass(frozen=True)
class Option:
    """A command line option. This class itself is for a value that is not a path and not part of the stage's key.

    Attributes:
        help: Description in ``--help``.
    """

    help: str


@dataclass(frozen=True)
class Item(Option):
    """The item of a matrix stage, which is the part after @ in DVC's name of the stage."""


@dataclass(frozen=True)
class Reads(Option):
    """A path that the stage reads: a dependency in dvc.yaml, and part of the key of the stage's work.

    Attributes:
        entries: Entries of the folder that the stage reads; empty = all entries.
    """

    entries: Sequence[str] = ()


@dataclass(frozen=True)
class Untracked(Option):
    """A path that the stage reads, but that is neither a dependency in dvc.yaml nor part of the stage's key.

    The training stages use this class for the VAE of the run, which previews and the training record need. The latents
    are dependencies, and the latents depend on the VAE. A run that starts from an LMDB of the original CausVid code may
    have no VAE; with a dependency, DVC would train a VAE.
    """


@dataclass(frozen=True)
class Writes(Option):
    """A path that the stage writes: an output in dvc.yaml."""


@dataclass(frozen=True)
class Metrics(Option):
    """The JSON file of the stage's metrics: a plot in dvc.yaml, for the reason that dvc.yaml gives.

    Attributes:
        in_dvc: Whether DVC tracks the file. If false, only git tracks the file.
    """

    help: str = "JSON file of the stage's metrics"
    in_dvc: bool = True


@dataclass(frozen=True)
class Headlines(Option):
    """A JSON file of headline numbers, which dvc.yaml lists under ``metrics`` for ``dvc metrics show``."""


@dataclass(frozen=True)
class Curve(Option):
    """The CSV file of a training curve: a plot in dvc.yaml.

    Attributes:
        y: Column on the vertical axis of ``dvc plots show``. The horizontal axis is ``step``.
    """

    help: str = "CSV file of the training curve"
    y: str = field(kw_only=True)


@dataclass(frozen=True)
class Section:
    """A section or an entry of params.yaml: params in dvc.yaml, and part of the key of the stage's work.

    Attributes:
        name: Dotted name of the section or entry.
    """

    name: str


class Field(NamedTuple):
    """Name, type and role of a field of a stage."""

    name: str
    type: Any
    role: Any


def declared(stage: type[Stage], role: type[Any]) -> list[Field]:
    """Return the fields of a stage whose role is an instance of ``role``, in the order of their declaration."""
    hints = get_type_hints(stage, include_extras=True)
    every = [Field(it.name, hints[it.name].__origin__, hints[it.name].__metadata__[0]) for it in fields(stage)]
    return [it for it in every if isinstance(it.role, role)]


def command(stage: type[Stage]) -> Callable[..., None]:
    """Create the command line function of a stage for ``typer``. It has the options of the stage, and ``--params``."""

    def main(*, params: Path = PARAMS, **given: Any) -> None:
        _execute(stage, given, params)

    options = {it.name: (it.type, typer.Option(..., help=it.role.help)) for it in declared(stage, Option)}
    options["params"] = (Path, typer.Option(PARAMS, help="params file"))
    main.__doc__ = stage.__doc__
    main.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    main.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=option)
            for name, (kind, option) in options.items()
        ]
    )
    return main


def _execute(stage: type[Stage], given: dict[str, Any], params: Path) -> None:
    """Run a stage with the option values ``given``."""
    sections, items = declared(stage, Section), declared(stage, Item)
    (metrics,) = declared(stage, Metrics)
    item = given[items[0].name] if items else None
    read = [given[it.name] / entry for it in declared(stage, Reads) for entry in it.role.entries or ("",)]
    with stage_run(
        stage.name(),
        params=params,
        sections={it.role.name: it.type for it in sections},
        inputs=read,
        metrics=given[metrics.name],
        item=item,
        paths=stage.user_paths(item),
        headline=stage.HEADLINE,
    ) as run:
        stage(**given, **{it.name: run.params[it.role.name] for it in sections}).run(run)
